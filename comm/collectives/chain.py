"""Chain: segments of the buffer follow each other down a line of ranks to rank 0, and back."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import IntArray, Round, moved


def chain(size: int, segments: int = 1) -> Iterator[Round]:
    """Pipelined chain: reduce towards rank 0, then broadcast from it, one segment behind the other.

    Cost for n bytes in K segments of m = n/K, γ ≤ β: (p-1)(α + mβ + mγ) + (K-1)mβ seconds to reduce and
    (p-1)(α + mβ) + (K-1)mβ to broadcast: near 2nβ when K is large against p and m against α/β.

    Args:
        size: the number of ranks.
        segments: K; more of them fill the line sooner, and each costs its latency.

    Source: Worringen, "Pipelining and overlapping for MPI collective operations" (2003).
    """
    hops = size - 1
    for step in range(hops + segments - 1 if hops else 0):  # reduce
        hop = _hops_busy(step, hops, segments)
        yield moved(hops - hop, hops - hop - 1, chunk=step - hop, reduce=True)
    for step in range(hops + segments - 1 if hops else 0):  # broadcast
        hop = _hops_busy(step, hops, segments)
        yield moved(hop, hop + 1, chunk=step - hop, reduce=False)


def _hops_busy(step: int, hops: int, segments: int) -> IntArray:
    """The hops that carry a segment in a step: hop h carries segment step - h, if there is one of that number."""
    return np.arange(max(0, step - segments + 1), min(hops, step + 1))
