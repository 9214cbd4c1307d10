"""How algorithms made for powers of two serve any number of ranks: the ranks beyond hand theirs to a neighbour."""

from collections.abc import Callable, Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import IntArray, Round, spanned


def folded(size: int, exchange: Callable[[IntArray], Iterator[Round]], chunks: int) -> Iterator[Round]:
    """An all-reduce over `size` ranks from one over the largest power of two q that is not larger.

    Of the first 2(size - q) ranks every odd one gives its buffer to the even one before it, sits out, and gets the
    result in the end. Where size is a power of two nothing is added; elsewhere 2(α + nβ) + nγ seconds are.

    Args:
        size: the number of ranks.
        exchange: the rounds among the q ranks that take part, whose numbers it is given, (q,).
        chunks: how many chunks `exchange` cuts the buffer into.

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
