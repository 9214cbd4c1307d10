"""Halving-doubling: partners split what they have, half each, until everyone owns a piece; then all in reverse."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.collectives.power_of_two import folded
from bigbatch.comm.schedules.schedule import IntArray, Round, spanned


def halving_doubling(size: int) -> Iterator[Round]:
    """Rabenseifner's all-reduce: as few bytes as the ring, in logarithmically many rounds.

    Reduce-scatter by recursive halving: partners at distance q/2, q/4, ... 1 each send the other's half of the
    chunks they still care for, and add what arrives. All-gather by recursive doubling: the same exchanges in
    reverse, with finished chunks.

    Cost for n bytes, size a power of two: 2 log2 p · α + 2((p-1)/p)nβ + ((p-1)/p)nγ seconds; elsewhere see
    `folded`.

    Source: Rabenseifner, "Optimization of collective reduction operations" (2004).
    """
    chunks = 1 << (size.bit_length() - 1)

    def exchange(ranks: IntArray) -> Iterator[Round]:
        place = np.arange(chunks)
        distance = chunks // 2
        while distance:  # reduce-scatter
            partner = place ^ distance
            first = partner // distance * distance
            yield spanned(ranks, ranks[partner], first=first, stop=first + distance, reduce=True)
            distance //= 2
        distance = 1
        while distance < chunks:  # all-gather
            first = place // distance * distance
            yield spanned(ranks, ranks[place ^ distance], first=first, stop=first + distance, reduce=False)
            distance *= 2

    yield from folded(size, exchange, chunks)
