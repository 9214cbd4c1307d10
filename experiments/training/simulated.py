"""An experiment on a simulated cluster: the same ranks, gradients and losses, on a clock of our own."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bigbatch.comm.simulation import UTILISATION
from bigbatch.comm.simulation.computing import Computing, Stragglers, gpu_named, stragglers_named
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.training.settings import CORE, MEASURED, NETWORK, Settings
from bigbatch.models.sizes import ModelSize
from bigbatch.training.compute_model import ComputeModel, SimulatedComputeModel

CORE_FLOPS = 5e10
"""What one core of a laptop reaches in the matrix products of a small Transformer, in float32 operations a second: the
default model trains at about 28,000 tokens/s a core, at 2 million operations a token."""

REPETITIONS = 3
"""How often computing is measured; the fastest counts."""


def computing_on(gpu: str, flops_per_token: float, utilisation: float = UTILISATION) -> Computing:
    """How long a worker computes on a GPU, or on the core of a laptop.

    Args:
        gpu: its name, or `core`.
        flops_per_token: operations, forward and backward.
        utilisation: the share of its operations a second that a GPU reaches; that of the core is in its number.

    Raises:
        ConfigurationError: there is no such GPU.
    """
    if gpu == CORE:
        return Computing(flops_per_token / CORE_FLOPS)
    return Computing.from_flops(flops_per_token, gpu_named(gpu).flops, utilisation)


@dataclass(frozen=True)
class Simulation:
    """What is simulated.

    Attributes:
        workers: how many.
        network: what messages cost.
        straggler: what slows workers, in the words of `stragglers_named`.
        gpu: what a worker computes on: `core`, `measured` (here, now) or a GPU's name.
        utilisation: the share of its operations a second that a GPU reaches.
        seed: of the stragglers' random factors.
        measured: micro-batch -> seconds a token takes here, where that was measured.

    Raises:
        ConfigurationError: an unknown name.
    """

    workers: int
    network: Network
    straggler: str = "none"
    gpu: str = CORE
    utilisation: float = UTILISATION
    seed: int = 0
    measured: dict[int, float] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        self.stragglers.check_ranks(self.workers)
        self.computing(1.0, lambda: 1.0)

    @cached_property
    def stragglers(self) -> Stragglers:
        """What slows workers."""
        return stragglers_named(self.straggler)

    def computing(self, flops_per_token: float, measure: Callable[[], float]) -> Computing:
        """How long a worker computes when nothing slows it.

        Args:
            flops_per_token: operations.
            measure: seconds a token takes here; asked only if that is what counts.
        """
        return (
            Computing(measure()) if self.gpu == MEASURED else computing_on(self.gpu, flops_per_token, self.utilisation)
        )

    def compute_model(
        self, worker: int, size: ModelSize, measure: Callable[[], float], micro_batch: int
    ) -> ComputeModel:
        """How long a worker computes; what is measured is measured once for all who compute as many examples at once.

        Args:
            worker: its number.
            size: of the model.
            measure: seconds that a token takes here.
            micro_batch: examples that it computes at once.
        """

        def once() -> float:
            if micro_batch not in self.measured:
                self.measured[micro_batch] = measure()
            return self.measured[micro_batch]

        computing = self.computing(size.flops_per_token, once)
        return SimulatedComputeModel(computing, self.stragglers.factors(worker, self.seed))

    def run(self, ranks: int, work: Callable[[Transport], Any], deadline: float) -> None:
        """Do `work` on so many simulated ranks, the first of which are the workers.

        Args:
            ranks: how many.
            work: called once for each.
            deadline: simulated seconds to wait for a rank that has failed.

        Raises:
            BigBatchError: whatever the work raises; a rank that failed; a deadlock.
        """
        Cluster(ranks, network=self.network, failures=self.stragglers.failures, deadline=deadline).run(work)

    def as_json(self) -> dict[str, Any]:
        """What is simulated, in types that JSON can write."""
        return {
            "workers": self.workers,
            "network": self.network.name,
            "network_source": self.network.source,
            "straggler": self.straggler,
            "gpu": self.gpu,
        }


def simulation_of(settings: Settings) -> Simulation:
    """The simulation that the settings ask for.

    Raises:
        ConfigurationError: an unknown name, or a bad file.
    """
    asked = settings.simulation
    assert asked.simulate is not None, "whoever asks has seen that something is simulated"
    network = network_named(asked.network or NETWORK)
    if settings.wires.node_size is not None:
        network = network.with_nodes(settings.wires.node_size)
    return Simulation(asked.simulate, network, asked.straggler or "none", asked.gpu or CORE, seed=settings.batch.seed)


def fastest(attempt: Callable[[], None]) -> float:
    """Seconds that something takes here, the least of a few times."""
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        attempt()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
