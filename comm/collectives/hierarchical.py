"""Hierarchical: reduces within the nodes first, where wires are fast, and then between the nodes what is left."""

from collections.abc import Iterator, Sequence

import numpy as np

from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.collectives.tree import tree
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedules.schedule import IntArray, Round, joined, spanned


def hierarchical(size: int, nodes: Sequence[Sequence[int]] = ()) -> Iterator[Round]:
    """Reduce-scatter within the nodes, all-reduce between them, all-gather within the nodes.

    With L ranks on each of N nodes: a ring reduce-scatter in every node leaves each of its ranks a chunk of n/L
    bytes; the ranks that own the same chunk all-reduce it in a ring across the nodes; a ring all-gather in every
    node ends it. Between nodes a rank then sends only 2((N-1)/N)(n/L) bytes.

    Nodes of different sizes cannot share chunks like that: then every node reduces to its first rank along a tree,
    the first ranks all-reduce in a ring, and each sends the result down its tree.

    Cost for n bytes, equal nodes with one NIC a rank, α₁ and β₁ within, α₂ and β₂ between: 2(L-1)(α₁ + (n/L)β₁) +
    ((L-1)/L)nγ + 2(N-1)(α₂ + (n/(LN))β₂) + ((N-1)/(LN))nγ seconds.

    Args:
        size: the number of ranks.
        nodes: the ranks of each node; if empty, all ranks share one node.

    Source: Mikami et al., "Massively distributed SGD: ImageNet/ResNet-50 training in a flash" (2018), section 3.

    Raises:
        ConfigurationError: the nodes do not name every rank exactly once.
    """
    layout = [np.asarray(node, dtype=np.int64) for node in nodes] or [np.arange(size)]
    if sorted(np.concatenate(layout).tolist()) != list(range(size)):
        raise ConfigurationError(f"The nodes {list(map(list, nodes))} do not have each of {size} ranks exactly once.")
    if len({len(node) for node in layout}) == 1:
        yield from _equal(np.stack(layout))
    else:
        yield from _unequal(layout)


def _equal(layout: IntArray) -> Iterator[Round]:
    """Nodes of one size; `layout` is (nodes, ranks a node)."""
    nodes, local = layout.shape
    within = list(ring(local))
    for round_ in within[: local - 1]:
        yield _within(round_, layout, nodes)
    for round_ in ring(nodes):
        # The rank in place l of a node owns chunk l + 1 of that node's ring, cut into one piece a node.
        owned = (np.arange(local) + 1) % local
        first = owned[:, None] * nodes + round_.first
        yield spanned(
            layout[round_.source].T.ravel(),
            layout[round_.target].T.ravel(),
            first=first.ravel(),
            stop=first.ravel() + 1,
            reduce=np.tile(round_.reduce, local),
        )
    for round_ in within[local - 1 :]:
        yield _within(round_, layout, nodes)


def _within(round_: Round, layout: IntArray, pieces: int) -> Round:
    """A round of one node's ring, in every node at once; each of its chunks is `pieces` of ours."""
    nodes = len(layout)
    return spanned(
        layout[:, round_.source].ravel(),
        layout[:, round_.target].ravel(),
        first=np.tile(round_.first * pieces, nodes),
        stop=np.tile(round_.stop * pieces, nodes),
        reduce=np.tile(round_.reduce, nodes),
    )


def _unequal(layout: list[IntArray]) -> Iterator[Round]:
    """Nodes of any sizes, through the first rank of each; the chunks are those of the ring between these."""
    chunks = len(layout)
    trees = [[_renumbered(round_, node, chunks) for round_ in tree(len(node))] for node in layout]
    deepest = max(len(rounds) for rounds in trees) // 2
    for step in range(deepest):  # up: the leaves of deeper trees begin earlier
        yield joined(
            [rounds[step - deepest + len(rounds) // 2] for rounds in trees if step >= deepest - len(rounds) // 2]
        )
    first_ranks = np.array([node[0] for node in layout])
    for round_ in ring(chunks):
        yield Round(first_ranks[round_.source], first_ranks[round_.target], round_.first, round_.stop, round_.reduce)
    for step in range(deepest):  # down
        yield joined([rounds[len(rounds) // 2 + step] for rounds in trees if step < len(rounds) // 2])


def _renumbered(round_: Round, ranks: IntArray, chunks: int) -> Round:
    """A round over a whole buffer, among the ranks given and over all chunks."""
    return spanned(ranks[round_.source], ranks[round_.target], first=0, stop=chunks, reduce=round_.reduce)
