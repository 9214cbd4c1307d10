"""Closed formulas of how long a sum takes over a ring and over parameter servers, on a network without contention."""

from bigbatch.comm.simulation.network import Network


def ring_seconds(network: Network, workers: int, nbytes: float) -> float:
    """Seconds that a ring of p workers takes for a sum of n bytes: 2(p-1)α + 2((p-1)/p)nβ + ((p-1)/p)nγ.

    Long messages come in packets. A ring then hides part of its adding, and may take less by up to that.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    alpha, beta = prices(network)
    return 2 * (workers - 1) * alpha + (workers - 1) / workers * nbytes * (2 * beta + network.gamma)


def server_seconds(network: Network, workers: int, nbytes: float, servers: int, segments: int = 1) -> float:
    """Seconds that S synchronous servers and W workers take for a sum of n bytes in K segments.

    That is (K+1)(α + (n/K)β·max(1, W/S)) + (n/(KS))γ if γ ≤ β: all adding but that of the last segment is hidden behind
    messages.
    """
    alpha, beta = prices(network)
    piece = nbytes / segments
    return (segments + 1) * (alpha + piece * beta * max(1.0, workers / servers)) + piece / servers * network.gamma


def asynchronous_seconds(
    network: Network, workers: int, nbytes: float, servers: int, delta: float, mu: float
) -> tuple[float, float]:
    """Bounds on the mean seconds per gradient that W workers need with S asynchronous servers.

    A worker computes for Δ + Exp(mean μ) seconds. A gradient takes at least the time of a worker that meets nobody,
    divided by W, and at least what the servers' ports and adding take. It takes at most the time of a worker that meets
    everybody every time, divided by W.

    Args:
        network: what messages cost.
        workers: W.
        nbytes: of the gradients.
        servers: S.
        delta: Δ, in seconds.
        mu: μ, in seconds.

    Returns:
        (least, most) seconds.

    Source: the asymptotic bounds of Lazowska et al. 1984, "Quantitative system performance", chapter 5.
    """
    alone = delta + mu + server_seconds(network, 1, nbytes, servers)
    capacity = nbytes * (prices(network)[1] + network.gamma) / servers
    crowded = delta + mu + server_seconds(network, workers, nbytes, servers)
    crowded += (workers - 1) * nbytes / servers * network.gamma
    return max(alone / workers, capacity), crowded / workers


def prices(network: Network) -> tuple[float, float]:
    """(α, β) of a network on which they are the same for all messages."""
    (piece,) = network.wires.pieces
    return piece.alpha, 1 / piece.bandwidth
