"""Recursive doubling: partners exchange everything they have, at twice the distance in every round."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.collectives.power_of_two import folded
from bigbatch.comm.schedules.schedule import IntArray, Round, moved


def recursive_doubling(size: int) -> Iterator[Round]:
    """Recursive-doubling all-reduce: the fewest rounds, for buffers so small that only latency counts.

    In round k partners 2^k apart swap their whole buffers and both add. What a rank holds then covers 2^(k+1)
    ranks.

    Cost for n bytes, size a power of two: log2 p · (α + nβ + nγ) seconds; elsewhere see `folded`.

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH"
    (2005), section 4.
    """

    def exchange(ranks: IntArray) -> Iterator[Round]:
        place = np.arange(len(ranks))
        distance = 1
        while distance < len(ranks):
            yield moved(ranks, ranks[place ^ distance], chunk=0, reduce=True)
            distance *= 2

    yield from folded(size, exchange, chunks=1)
