"""Barrier: everyone waits for everyone."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, moved


def barrier(size: int) -> Iterator[Round]:
    """The dissemination barrier of `Transport.barrier`: in round k everyone tells the rank 2^k further on.

    Cost: ⌈log2 p⌉ rounds of one small message a rank.

    Source: Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization" (1988).
    """
    rank, distance = np.arange(size), 1
    while distance < size:
        yield moved(rank, (rank + distance) % size, chunk=0, reduce=False)
        distance *= 2
