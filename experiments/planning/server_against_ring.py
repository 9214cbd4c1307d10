"""A parameter server against a ring: the ratio of their times, simulated and by formula.

Each comparison is a cell. Bandwidths and workers make a map of cells; message sizes and stragglers make a row of cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigbatch.comm.simulation.computing import Stragglers, expected_synchronous
from bigbatch.comm.simulation.formulas import asynchronous_seconds, prices, ring_seconds, server_seconds
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.experiments.planning.simulate import bare_row, crossover, simulate_row
from bigbatch.experiments.planning.workload import ELEMENT_BYTES, Workload
from bigbatch.experiments.training.simulated import computing_on
from bigbatch.models.sizes import model_named

NETWORK = "infiniband-hdr"
"""The network that is simulated; the maps change its bandwidth."""

MAP_BYTES = 25_000_000
"""Bytes of the gradients in the maps: one bucket."""

MODEL, GPU, SEQUENCES = "gpt2-small", "a100", 8
"""The model, the GPU and the sequences per update of each worker, in the comparison with stragglers."""

SEGMENTS = 16
"""Pieces of each part of the gradients, where the values of one piece travel beside the gradients of the next."""


@dataclass(frozen=True)
class Servers:
    """How many servers there are, and how they answer.

    Attributes:
        count: the number of servers for a number of workers.
        segments: the pieces into which each server's part is cut.
    """

    count: Callable[[int], int]
    segments: int = 1


ONE, MANY, OVERLAPPED = "1 server", "W servers", "W servers, overlapped"

SERVERS = {
    ONE: Servers(lambda _: 1),
    "W/4 servers": Servers(lambda workers: workers // 4),
    MANY: Servers(lambda workers: workers),
}

MAP, SIZE, STRAGGLERS = "bandwidth", "message", "stragglers"
"""What a comparison varies: the bandwidth, the size of the message, or the stragglers."""


def cell(
    varied: str, servers: str, workers: int, value: float, predicted: tuple[float, float], ratios: Sequence[float]
) -> dict[str, Any]:
    """Makes the record of one comparison, in types that JSON can write.

    Args:
        varied: `MAP`, `SIZE` or `STRAGGLERS`.
        servers: the number of servers, in words.
        workers: number of workers.
        value: the value of what is varied: bytes per second, bytes, or the mean delay divided by the time of computing.
        predicted: (least, most) ratio of the server's time to the ring's, by formula.
        ratios: simulated ratios of the server's time to the ring's, one for each seed.
    """
    return {
        "varied": varied,
        "servers": servers,
        "workers": workers,
        "value": value,
        "predicted": list(predicted),
        "ratios": list(ratios),
    }


def predicted_ratio(network: Network, workers: int, nbytes: int, kind: Servers) -> tuple[float, float]:
    """Computes the ratio of a synchronous server's time to a ring's by formula, as equal bounds (least, most)."""
    ratio = server_seconds(network, workers, nbytes, kind.count(workers), kind.segments)
    ratio /= ring_seconds(network, workers, nbytes)
    return ratio, ratio


def map_cells(network: Network, workers: Sequence[int], bandwidths: Sequence[float]) -> list[dict[str, Any]]:
    """Makes the cells of sums of `MAP_BYTES`, by servers, bandwidth (bytes per second) and workers."""
    cells = []
    for name, kind in SERVERS.items():
        ratios = crossover(network, MAP_BYTES, workers, bandwidths, kind.count)
        for row, bandwidth in enumerate(bandwidths):
            changed = replace(network, wires=wire(prices(network)[0], bandwidth))
            for column, count in enumerate(workers):
                predicted = predicted_ratio(changed, count, MAP_BYTES, kind)
                cells.append(cell(MAP, name, count, bandwidth, predicted, [float(ratios[row, column])]))
    return cells


def size_cells(network: Network, workers: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Makes the cells of sums of several sizes, in bytes, on `workers` workers."""
    cells = []
    for nbytes in sizes:
        ring = bare_row("ring", network, workers, nbytes)["communication_seconds"]
        for name, kind in {**SERVERS, OVERLAPPED: Servers(SERVERS[MANY].count, SEGMENTS)}.items():
            row = bare_row("ps", network, workers, nbytes, servers=kind.count(workers), segments=kind.segments)
            predicted = predicted_ratio(network, workers, nbytes, kind)
            cells.append(cell(SIZE, name, workers, nbytes, predicted, [row["communication_seconds"] / ring]))
    return cells


def workload() -> Workload:
    """Makes the workload of each worker; all gradients are sent after the computing, as the formulas assume."""
    size = model_named(MODEL)
    assert size.context is not None, "a language model has a context"
    computing = computing_on(GPU, size.flops_per_token)
    return Workload(size, SEQUENCES * size.context, computing, ELEMENT_BYTES * size.parameters, overlap=False)


def straggler_cells(network: Network, workers: int, strength: float, seeds: int, updates: int) -> list[dict[str, Any]]:
    """Makes the cells of updates with stragglers: asynchronous servers against a ring, which waits for all workers.

    Args:
        network: the network, which says what messages cost.
        workers: number of workers.
        strength: an update's mean delay, divided by the time that it computes.
        seeds: number of seeds; only one is used if nothing is random.
        updates: number of gradients that each worker computes.

    Returns:
        A cell for each number of servers, with two more entries: `gradients_per_second` and `ring_gradients_per_second`
        of every seed.
    """
    load = workload()
    nbytes, delta, mu = ELEMENT_BYTES * load.size.parameters, load.compute, strength * load.compute
    stragglers = Stragglers(exponential=strength)
    tried = range(seeds if strength else 1)

    def rates(name: str, servers: int) -> list[float]:
        steps = (
            simulate_row(name, network, workers, load, stragglers, servers=servers, seed=seed, updates=updates)
            for seed in tried
        )
        return [workers / row.step_seconds for row in steps]

    ring = rates("ring", 1)
    expected = (expected_synchronous(delta, mu, workers) + ring_seconds(network, workers, nbytes)) / workers
    cells = []
    for name, kind in SERVERS.items():
        servers = kind.count(workers)
        own = rates("ps:async", servers)
        least, most = asynchronous_seconds(network, workers, nbytes, servers, delta, mu)
        ratios = [one / other for one, other in zip(ring, own, strict=True)]
        made = cell(STRAGGLERS, name, workers, strength, (least / expected, most / expected), ratios)
        cells.append({**made, "gradients_per_second": own, "ring_gradients_per_second": ring})
    return cells
