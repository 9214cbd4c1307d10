"""Binomial tree: sums run up a tree to rank 0, and the result runs down again."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.collectives.broadcast import broadcast
from bigbatch.comm.schedules.schedule import Round, moved


def tree(size: int) -> Iterator[Round]:
    """Reduce to rank 0 along a binomial tree, then broadcast along the same.

    Simple and short, but every transfer carries the whole buffer, and half of the ranks are idle after the first
    round.

    Cost for n bytes, blocking sends: 2⌈log2 p⌉(α + nβ) + ⌈log2 p⌉nγ seconds.

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH"
    (2005), section 4.
    """
    down = list(broadcast(size))
    for round_ in reversed(down):
        yield moved(round_.target, round_.source, chunk=np.zeros(len(round_)), reduce=True)
    yield from down
