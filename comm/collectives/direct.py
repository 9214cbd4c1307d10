"""Direct: every rank sends each chunk to the rank that owns it, then the sum of its own chunk to everyone."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, moved


def direct(size: int) -> Iterator[Round]:
    """Reduce-scatter and all-gather straight between all pairs: two rounds, as few bytes as the ring.

    Rank r owns chunk r, as a parameter server sharded over the workers would. Everyone starts with the neighbour
    at the right, so that no two send to the same rank at the same time.

    Cost for n bytes, γ ≤ β: 2α + 2((p-1)/p)nβ + (n/p)γ seconds. Each rank makes 2(p-1) transfers.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014); Jiang et al., "A
    unified architecture for accelerating distributed DNN training" (2020), section 4.
    """
    if size == 1:
        return
    distance, rank = np.divmod(np.arange(size * (size - 1)), size)
    target = (rank + distance + 1) % size
    yield moved(rank, target, chunk=target, reduce=True)
    yield moved(rank, target, chunk=rank, reduce=False)
