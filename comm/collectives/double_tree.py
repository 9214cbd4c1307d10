"""Double tree: two binary trees, each for half of the buffer, in which the leaves of one are inner in the other."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.schedules.schedule import Round, joined, moved


def double_tree(size: int, segments: int = 1) -> Iterator[Round]:
    """Pipelined reduce and broadcast along two binary trees at once.

    In one tree half of the ranks are leaves and send but do not forward. The second tree is the first one mirrored
    (or, for an odd number, moved on by one), so that a leaf of one is an inner node of the other, and every rank's
    wire carries about the same. The trees are binary and in order: an inner node sits between its subtrees.

    Every transfer is made in the first round in which its data is there and both ports are free, up before down,
    early segments first.

    Cost for n bytes in K segments a tree: about 2nβ plus O(log p + K) latencies, while a ring pays 2(p-1).

    Args:
        size: the number of ranks.
        segments: K, the number of pieces into which each tree's half of the buffer is cut.

    Source: Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan"
    (2009).
    """
    trees = [_in_order_parents(size), _second_tree(size)]
    children = [np.bincount([rank for rank in parent if rank >= 0], minlength=size) for parent in trees]
    # In each tree and segment: from how many children a rank has heard, and whether it has the sum.
    heard = np.zeros((2, segments, size), dtype=np.int64)
    has_sum = np.zeros((2, segments, size), dtype=np.bool_)
    edges = [(which, k, rank) for k in range(segments) for which in range(2) for rank in range(size)]
    ups = [(which, k, rank) for which, k, rank in edges if trees[which][rank] >= 0]
    downs = list(ups)
    while ups or downs:
        sending, receiving = set[int](), set[int]()
        up = [
            (which, k, rank)
            for which, k, rank in ups
            if heard[which, k, rank] == children[which][rank] and _claim(rank, trees[which][rank], sending, receiving)
        ]
        down = [
            (which, k, rank)
            for which, k, rank in downs
            if has_sum[which, k, trees[which][rank]] and _claim(trees[which][rank], rank, sending, receiving)
        ]
        yield joined(
            [moved(rank, trees[which][rank], chunk=which * segments + k, reduce=True) for which, k, rank in up]
            + [moved(trees[which][rank], rank, chunk=which * segments + k, reduce=False) for which, k, rank in down]
        )
        for which, k, rank in up:
            parent = trees[which][rank]
            heard[which, k, parent] += 1
            is_root = trees[which][parent] < 0
            has_sum[which, k, parent] = is_root and heard[which, k, parent] == children[which][parent]
        for which, k, rank in down:
            has_sum[which, k, rank] = True
        done_up, done_down = set(up), set(down)
        ups = [edge for edge in ups if edge not in done_up]
        downs = [edge for edge in downs if edge not in done_down]


def _claim(source: int, target: int, sending: set[int], receiving: set[int]) -> bool:
    """Take a rank's port for sending and another's for receiving in this round, if both are free."""
    if source in sending or target in receiving:
        return False
    sending.add(source)
    receiving.add(target)
    return True


def _in_order_parents(size: int) -> list[int]:
    """The parent of every rank, -1 for the root, in a binary tree whose order from left to right is the ranks'.

    Every even rank is a leaf.
    """
    parents = [-1] * size

    def hang(first: int, stop: int, parent: int) -> None:
        if first < stop:
            middle = first + (1 << ((stop - first).bit_length() - 1)) - 1
            parents[middle] = parent
            hang(first, middle, middle)
            hang(middle + 1, stop, middle)

    hang(0, size, -1)
    return parents


def _second_tree(size: int) -> list[int]:
    """The first tree mirrored if the number of ranks is even, else moved on by one rank."""
    first = _in_order_parents(size)
    second = [-1] * size
    for rank, parent in enumerate(first):
        if size % 2 == 0:
            second[size - 1 - rank] = size - 1 - parent if parent >= 0 else -1
        else:
            second[(rank + 1) % size] = (parent + 1) % size if parent >= 0 else -1
    return second
