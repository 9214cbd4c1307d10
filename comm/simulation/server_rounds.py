"""A synchronous update through parameter servers, as rounds, so that it can be replayed."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedules.schedule import Round, joined, moved


def synchronous_server(size: int, servers: int = 1, segments: int = 1) -> Iterator[Round]:
    """Every worker sends every server its part of the gradients, and then gets its part of the values.

    The last `servers` ranks serve. The ranks begin with different partners, so that as few as possible meet at the
    same port. Requests and reports, of a few bytes each, are left out. In several segments, the values of each
    travel while the next one's gradients do, so that both directions of a port are busy.

    Cost for n bytes, W workers, S servers, K segments, S divides W, γ ≤ β: 2α + 2nβ·max(1, W/S) + (n/S)γ seconds in one
    segment; in several, at most (K+1)(α + (n/K)β·max(1, W/S)) + (n/S)γ, of which adding is mostly hidden.

    Args:
        size: the number of ranks, workers and servers together.
        servers: the number of ranks that serve.
        segments: the number of pieces into which every part is cut.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014); for segments, Jiang et
    al., "A unified architecture for accelerating distributed DNN training in heterogeneous GPU/CPU clusters" (2020),
    section 2.3, which counts the two directions of a port as busy at once.

    Raises:
        ConfigurationError: there would be no worker or no server.
    """
    workers = size - servers
    if workers < 1 or servers < 1:
        raise ConfigurationError(f"{servers} of {size} ranks were to serve; at least one must serve, and one work.")
    turn, worker = np.divmod(np.arange(servers * workers), workers)
    pushed = (worker + turn) % servers
    turn, pulled = np.divmod(np.arange(workers * servers), servers)
    reader = (pulled + turn) % workers
    for segment in range(segments + 1):
        rounds = []
        if segment > 0:
            rounds.append(moved(workers + pulled, reader, chunk=pulled * segments + segment - 1, reduce=False))
        if segment < segments:
            rounds.append(moved(worker, workers + pushed, chunk=pushed * segments + segment, reduce=True))
        yield joined(rounds)
