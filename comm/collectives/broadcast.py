"""Broadcast from rank 0 along a binomial tree: the ranks that have the data double in every round."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, moved


def broadcast(size: int) -> Iterator[Round]:
    """Binomial-tree broadcast of rank 0's buffer to `size` ranks.

    In round k the ranks below 2^k, which have the data, each send it to the rank 2^k above them.

    Cost for n bytes: ⌈log2 p⌉(α + nβ) seconds.

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH"
    (2005), section 4.
    """
    informed = 1
    while informed < size:
        source = np.arange(min(informed, size - informed))
        yield moved(source, source + informed, chunk=0, reduce=False)
        informed *= 2
