"""Plans: answers a request for a plan with a front of candidates, and explains it in sentences."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bigbatch.comm.simulation.gpus import GPUS, gpu_named
from bigbatch.comm.simulation.network import Network
from bigbatch.experiments.planning.needs import Known, Measured, fitting, known_from, memory_bytes
from bigbatch.experiments.planning.plan import (
    Candidate,
    Deployment,
    advice,
    candidates,
    exact_front,
    recommended,
)
from bigbatch.experiments.planning.rows import MODEL, as_trained, computed_on, network_of, precisions_of
from bigbatch.experiments.planning.settings import PlanRequest
from bigbatch.experiments.training.simulated import computing_on, precision_on
from bigbatch.experiments.training.simulation_settings import CORE
from bigbatch.models.sizes import ModelSize, model_named


@dataclass(frozen=True)
class Plan:
    """The answer to a request for a plan.

    Attributes:
        request: what was asked for.
        size: the size of the model.
        network: the network between the workers.
        known: how many updates each batch size takes, and how that is known.
        cluster: the model and the cluster that the candidates run on.
        at_once: numbers of sequences at once that fit into a worker's memory.
        candidates: every combination that was considered.
        front: the candidates of which no other is both faster and cheaper.
        best: the candidate of the front that is recommended.
        advice: sentences that say what to do.
    """

    request: PlanRequest
    size: ModelSize
    network: Network
    known: Known
    cluster: Deployment
    at_once: Sequence[int]
    candidates: Sequence[Candidate]
    front: Sequence[Candidate]
    best: Candidate
    advice: str

    @property
    def title(self) -> str:
        """A title for the plan: the model, the loss, the GPU, precisions if they were asked for, and the network."""
        goal = f"a loss of {self.known.target:g}" if self.known.target is not None else "the target"
        return f"{self.size.name} to {goal}, {computed_on(self.request.cluster)}, {self.network.name}"

    @property
    def precisions(self) -> dict[str, str]:
        """The `precision` of computing and that of the `wire`."""
        return precisions_of(self.request.cluster)

    def memory(self, micro_batch: int) -> int:
        """The bytes that a worker needs for that many sequences at once, by estimate."""
        return memory_bytes(self.size, micro_batch, self.precisions["precision"])

    def written(self) -> dict[str, Any]:
        """Converts the plan to types that JSON can write, for summary.json."""
        return {
            "front": [asdict(one) for one in self.front],
            "recommended": asdict(self.best),
            "advice": self.advice,
            "candidates": [asdict(one) for one in self.candidates],
            "updates": self.known.as_json(),
            "model": asdict(self.size),
            "network": {"name": self.network.name, "source": self.network.source},
            "gpu": self.request.cluster.gpu,
            "utilisation": self.request.cluster.utilisation,
            **self.precisions,
            "price": self.request.price,
            "memory_bytes": {str(number): self.memory(number) for number in self.at_once},
        }

    def sentences(self) -> list[str]:
        """Makes sentences that say what the plan's numbers are based on, and which micro-batches were left out."""
        tradeoff, gpu = self.known.tradeoff, self.request.cluster.gpu
        said = [
            f"{self.title}; of {len(self.candidates):,} combinations, those of which no other is both faster and "
            "cheaper.",
            f"At least {tradeoff.least_updates:,.0f} updates, critical batch {tradeoff.critical_batch:,.0f} tokens: "
            f"{self.known.source}.",
        ]
        left_out = [number for number in self.request.micro_batch if number not in self.at_once]
        most = self.best.micro_batch
        if gpu not in GPUS:
            said.append("Nothing is known of its memory, so that every micro-batch was taken to fit.")
        elif left_out:
            numbers = ", ".join(map(str, left_out))
            said.append(f"Too many sequences at once for the memory of {gpu}, and left out: {numbers}.")
        elif most == max(self.at_once) and self.memory(2 * most) <= GPUS[gpu].memory_bytes:
            said.append(f"The memory of {gpu} has room for more than {most} sequences at once: see --micro-batch.")
        said.append(f"Network {self.network.name}: {(self.network.source or 'your own').rstrip('.')}.")
        return said


def planned_for(request: PlanRequest, tell: Callable[[str], None]) -> Plan:
    """Find the front of time and cost that a request asks for, and recommend a candidate on it.

    Args:
        request: what is asked for.
        tell: called with a line about the progress.

    Raises:
        ConfigurationError: a name is unknown, a GPU does not compute in a precision, a folder has no fit, or the model
            does not fit into a worker's memory.
    """
    asked = request.cluster
    network = network_of(asked)
    measured = Measured.read(request.fit).size if request.fit is not None else None
    size = measured if request.model is None and measured is not None else model_named(request.model or MODEL)
    computing = computing_on(asked.gpu, size.flops_per_token, asked.utilisation, asked.precision)
    known = known_from(size, request.target, request.critical_batch, request.least_updates, request.fit)
    size = as_trained(size, asked)
    gpu = None if asked.gpu == CORE else gpu_named(asked.gpu)
    at_once = fitting(size, request.micro_batch, gpu, precision_on(asked.gpu, asked.precision))
    cluster = Deployment(size, network, computing, asked.bucket_size, asked.overlap, wire=asked.wire)
    found = candidates(
        cluster,
        known.tradeoff,
        list(request.strategies),
        request.workers,
        request.servers,
        at_once,
        request.accumulate,
        tell,
    )
    front, found = exact_front(cluster, known.tradeoff, found, tell)
    return Plan(request, size, network, known, cluster, at_once, found, front, recommended(front), advice(front))
