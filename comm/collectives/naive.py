"""Naive: rank 0 collects everything, adds it up, and sends it to everyone."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, moved


def naive(size: int) -> Iterator[Round]:
    """Gather to rank 0, which adds, then send from rank 0 to each: what one would write first.

    Everything passes through rank 0's one port, so that time grows with the number of ranks.

    Cost for n bytes, γ ≤ β: 2α + 2(p-1)nβ + nγ seconds.
    """
    if size == 1:
        return
    others = np.arange(1, size)
    yield moved(others, 0, chunk=0, reduce=True)
    yield moved(0, others, chunk=0, reduce=False)
