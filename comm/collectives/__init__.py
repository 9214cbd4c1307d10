"""The algorithms, each one short file: a function of the number of ranks that yields rounds.

An algorithm may ask for two more things by naming them as parameters: `segments`, the number of pieces into which the
buffer is cut so that they can follow each other, and `nodes`, the ranks that share each machine.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from bigbatch.comm.foreign import guarded
from bigbatch.comm.registry import Registry

if TYPE_CHECKING:  # a command line that only names algorithms must not wait for NumPy
    from bigbatch.comm.schedules.schedule import Schedule


ALGORITHMS = Registry(
    "algorithm",
    "bigbatch.algorithms",
    {
        "ring": "bigbatch.comm.collectives.ring:ring",
        "recursive-doubling": "bigbatch.comm.collectives.recursive_doubling:recursive_doubling",
        "halving-doubling": "bigbatch.comm.collectives.halving_doubling:halving_doubling",
        "tree": "bigbatch.comm.collectives.tree:tree",
        "chain": "bigbatch.comm.collectives.chain:chain",
        "double-tree": "bigbatch.comm.collectives.double_tree:double_tree",
        "direct": "bigbatch.comm.collectives.direct:direct",
        "naive": "bigbatch.comm.collectives.naive:naive",
        "hierarchical": "bigbatch.comm.collectives.hierarchical:hierarchical",
    },
    function="a function of the number of ranks that yields rounds",
)
"""All-reduce algorithms; other packages add theirs as entry points of the group "bigbatch.algorithms"."""

SEGMENT_BYTES = 128 * 1024
"""Bytes of a segment: large against a message's latency, small against a processor's cache."""

MOST_SEGMENTS = 64
"""The largest number of segments; more would only add latencies."""

Nodes = tuple[tuple[int, ...], ...]
"""The ranks of each node."""


def segments_for(nbytes: int) -> int:
    """The number of segments into which to cut a buffer of `nbytes` bytes."""
    return min(MOST_SEGMENTS, max(1, nbytes // SEGMENT_BYTES))


def bind(algorithm: Callable[..., Any], nbytes: int, nodes: Nodes = ()) -> "Schedule":
    """Turns an algorithm into a schedule, a function of the number of ranks alone.

    Args:
        algorithm: yields rounds; its parameters `segments` and `nodes`, if it has them, are filled in, unless a
            functools.partial has done so.
        nbytes: the size of the buffer in bytes, from which the number of segments follows.
        nodes: the ranks of each node; if empty, all ranks share one node.
    """
    return _bound(algorithm, segments_for(nbytes), nodes)


@lru_cache(maxsize=256)
def _bound(algorithm: Callable[..., Any], segments: int, nodes: Nodes) -> "Schedule":
    with guarded(str(getattr(algorithm, "__name__", algorithm)), "be an algorithm", "was looked at", algorithm):
        wanted = set(inspect.signature(algorithm).parameters) - set(getattr(algorithm, "keywords", ()))
    extra = {name: value for name, value in (("segments", segments), ("nodes", nodes)) if name in wanted}
    return partial(algorithm, **extra) if extra else algorithm
