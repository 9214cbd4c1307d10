"""All-gather: every rank has a chunk of its own, and ends with everybody's."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, moved


def all_gather(size: int) -> Iterator[Round]:
    """Ring all-gather over `size` ranks.

    The buffer is cut into `size` chunks. Chunk r starts at rank r and travels once round the ring: in every round each
    rank sends its neighbour on the right the chunk that it has received last. Chunks may have different lengths.

    Cost for n bytes a rank, contention-free: (p-1)(α + nβ) seconds, which moves the fewest bytes possible. Each rank
    makes p-1 transfers and sends (p-1)n bytes.

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH" (2005),
    section 4.1.
    """
    rank = np.arange(size)
    for step in range(size - 1):
        yield moved(rank, (rank + 1) % size, chunk=(rank - step) % size, reduce=False)
