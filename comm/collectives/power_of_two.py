"""Fits algorithms made for powers of two to any number of ranks: the extra ranks hand their data to a neighbour."""

from collections.abc import Callable, Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import IntArray, Round, spanned


def folded(size: int, exchange: Callable[[IntArray], Iterator[Round]], chunks: int) -> Iterator[Round]:
    """Extends an all-reduce over q ranks, the largest power of two up to `size`, to all `size` ranks.

    Of the first 2(size - q) ranks every odd one gives its buffer to the even one before it, sits out, and gets the
    result in the end. This adds 2(α + nβ) + nγ seconds, or nothing if size is a power of two.

    Args:
        size: the number of ranks.
        exchange: yields the rounds among the q ranks that take part; it is called with their numbers, (q,).
        chunks: the number of chunks into which `exchange` cuts the buffer.

    Source: Thakur, Rabenseifner and Gropp (2005), section 4.5.
    """
    power = 1 << (size.bit_length() - 1)
    extra = size - power
    even = 2 * np.arange(extra)
    if extra:
        yield spanned(even + 1, even, first=0, stop=chunks, reduce=True)
    yield from exchange(np.concatenate([even, np.arange(2 * extra, size)]))
    if extra:
        yield spanned(even, even + 1, first=0, stop=chunks, reduce=False)
