"""An experiment on a simulated cluster: real ranks, gradients and losses, on a simulated clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import FP32
from bigbatch.comm.simulation import UTILISATION
from bigbatch.comm.simulation.computing import FORWARD_SHARE, Computing, Stragglers, stragglers_named
from bigbatch.comm.simulation.gpus import gpu_named
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.training.settings import Settings
from bigbatch.experiments.training.simulation_settings import CORE, MEASURED, NETWORK
from bigbatch.models.sizes import ModelSize
from bigbatch.training.compute_model import ComputeModel, SimulatedComputeModel
from bigbatch.training.precision import PRECISIONS

Result = TypeVar("Result")

CORE_FLOPS = 5e10
"""Speed of one core of a laptop in the matrix products of a small Transformer, in float32 operations per second: the
default model trains at about 28,000 tokens/s per core, at 2 million operations per token."""

REPETITIONS, ENOUGH_SECONDS = 3, 2.0
"""Number of times that computing is measured, of which the fastest counts; and seconds after which it is enough."""


def precision_on(gpu: str, asked: str | None = None) -> str:
    """Says in which precision a GPU, or a core of a laptop, computes.

    Args:
        gpu: name of the GPU, or `core`.
        asked: "fp32", "bf16" or "fp16"; None for bf16 or fp16, whichever the GPU has, and for fp32 on a core.

    Raises:
        ConfigurationError: there is no such GPU, it does not compute in that precision, or nobody knows how fast.
    """
    if gpu != CORE:
        known = gpu_named(gpu)
        precision = known.half if asked is None else asked
        known.peak(precision)
        return precision
    if asked not in (None, FP32):
        raise ConfigurationError(
            f"How fast a core computes in {asked} is not known, for it depends on the core: take a --gpu that is "
            f"known, such as a100, or leave --precision {asked} out; --simulate can also take --gpu measured, which "
            "measures this machine."
        )
    return FP32


def computing_on(
    gpu: str, flops_per_token: float, utilisation: float = UTILISATION, precision: str | None = None
) -> Computing:
    """Computes how long a worker computes for a token on a GPU, or on a core of a laptop.

    Args:
        gpu: name of the GPU, or `core`.
        flops_per_token: floating-point operations of a token, forward and backward.
        utilisation: the share of its peak operations per second that a GPU reaches; it does not apply to a core.
        precision: the precision in which it computes, as `precision_on` takes it.

    Raises:
        ConfigurationError: as `precision_on`.
    """
    own = precision_on(gpu, precision)
    if gpu == CORE:
        return Computing(flops_per_token / CORE_FLOPS)
    return Computing.from_flops(flops_per_token, gpu_named(gpu).peak(own), utilisation)


@dataclass(frozen=True)
class Simulation:
    """The simulated cluster of an experiment.

    Attributes:
        workers: number of workers.
        network: the network, which says what messages cost.
        straggler: what slows workers, in the words of `stragglers_named`.
        gpu: what a worker computes on: `core`, `measured` (this machine, now) or a GPU's name.
        utilisation: the share of its peak operations per second that a GPU reaches.
        seed: seed for the stragglers' random factors.
        precision: the precision in which the models compute: "fp32", "bf16" or "fp16".
        measured: seconds that a token takes here, for each size of micro-batch that was measured.

    Raises:
        ConfigurationError: the GPU is unknown, or how fast it computes in that precision; or the words about stragglers
            are not valid.
    """

    workers: int
    network: Network
    straggler: str = "none"
    gpu: str = CORE
    utilisation: float = UTILISATION
    seed: int = 0
    precision: str = FP32
    measured: dict[int, float] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        self.stragglers.check_ranks(self.workers)
        self.computing(1.0, lambda: 1.0)

    @cached_property
    def stragglers(self) -> Stragglers:
        """The slowed and failing workers that `straggler` describes."""
        return stragglers_named(self.straggler)

    def computing(self, flops_per_token: float, measure: Callable[[], float]) -> Computing:
        """Computes how long a worker computes for a token when nothing slows it.

        Args:
            flops_per_token: floating-point operations of a token, forward and backward.
            measure: measures the seconds that a token takes here; called only if `gpu` is `measured`.
        """
        if self.gpu == MEASURED:
            return Computing(measure())
        return computing_on(self.gpu, flops_per_token, self.utilisation, self.precision)

    def compute_model(
        self, worker: int, size: ModelSize, measure: Callable[[], float], micro_batch: int
    ) -> ComputeModel:
        """Makes the compute model of a worker; a measurement is shared by workers with the same size of micro-batch.

        Args:
            worker: the worker's number.
            size: the size of the model.
            measure: measures the seconds that a token takes here, with what is recomputed.
            micro_batch: number of examples that the worker computes at once.
        """

        def once() -> float:
            if micro_batch not in self.measured:
                self.measured[micro_batch] = measure() / (1 + size.recomputed * FORWARD_SHARE)
            return self.measured[micro_batch]

        computing = self.computing(size.flops_per_token, once)
        return SimulatedComputeModel(computing, self.stragglers.factors(worker, self.seed), size.recomputed)

    def run(self, ranks: int, work: Callable[[Transport], Result], deadline: float) -> list[Result]:
        """Run `work` on simulated ranks, the first of which are the workers.

        Args:
            ranks: number of ranks.
            work: called once for each rank with the rank's transport.
            deadline: simulated seconds to wait for a rank that has failed.

        Returns:
            What the work returned, by rank.

        Raises:
            BigBatchError: the work raised it, a rank failed, or there is a deadlock.
        """
        return Cluster(ranks, network=self.network, failures=self.stragglers.failures, deadline=deadline).run(work)

    def as_json(self) -> dict[str, Any]:
        """Describes the simulation in types that JSON can write."""
        return {
            "workers": self.workers,
            "network": self.network.name,
            "network_source": self.network.source,
            "straggler": self.straggler,
            "gpu": self.gpu,
        }


def simulation_of(settings: Settings) -> Simulation:
    """Makes the simulation that the settings ask for.

    Raises:
        ConfigurationError: a name is unknown, or a file is not valid.
    """
    asked = settings.simulation
    assert asked.simulate is not None, "whoever asks has seen that something is simulated"
    network = network_named(asked.network or NETWORK)
    if settings.wires.node_size is not None:
        network = network.with_nodes(settings.wires.node_size)
    return Simulation(
        asked.simulate,
        network,
        asked.straggler or "none",
        asked.gpu or CORE,
        seed=settings.batch.seed,
        precision=PRECISIONS[settings.machine.precision].computes,
    )


def fastest(attempt: Callable[[], None]) -> float:
    """Measures the seconds that `attempt` takes here: the shortest of a few times, fewer if it takes long."""
    seconds: list[float] = []
    while len(seconds) < REPETITIONS and sum(seconds) < ENOUGH_SECONDS:
        started = time.perf_counter()
        attempt()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
