"""Ring all-reduce: everybody talks to the neighbour on the right, and every wire is busy in every round."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, moved


def ring(size: int) -> Iterator[Round]:
    """Ring all-reduce over `size` ranks.

    The buffer is cut into `size` chunks. In the reduce-scatter half, chunk c starts at rank c and travels once
    round the ring, each rank adding its own part, until rank c - 1 holds the sum. In the all-gather half the
    finished chunks travel round once more and replace what they meet.

    Cost for n bytes, contention-free, size divides n: 2(p-1)α + 2((p-1)/p)nβ + ((p-1)/p)nγ seconds, which moves
    the fewest bytes possible. Each rank makes 2(p-1) transfers and sends 2((p-1)/p)n bytes.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009).
    """
    rank = np.arange(size)
    right = (rank + 1) % size
    for step in range(size - 1):  # reduce-scatter
        yield moved(rank, right, chunk=(rank - step) % size, reduce=True)
    for step in range(size - 1):  # all-gather
        yield moved(rank, right, chunk=(rank + 1 - step) % size, reduce=False)
