"""Shares of the data: who computes on which, what becomes of a worker's that goes away, and which are in."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bigbatch.comm.errors import MalformedError

Ranges = Sequence[tuple[int, int]]
"""Shares as ranges of their numbers, (first, one past the last) each, in order."""

MOST_RANGES = 1024
"""The largest number of ranges in a message; what is left out is said the next time."""


class Shares:
    """Hands out the numbers of equal shares of the data, in order, and knows which of them are in.

    A share is in once its gradient has been taken. One whose worker goes away before that is handed out again, before
    any new one. So is one that is in here but not in the parts of the parameters that other servers hold.

    Args:
        total: how many shares there are.

    Attributes:
        total: how many shares there are.
        handed_out: how many have been handed out at least once, as far as this server knows.
        returned: the numbers of the shares that are to be handed out again, in order.
        done: the number of shares that are in.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.handed_out = 0
        self.returned: deque[int] = deque()
        self.done = 0
        self._in = np.zeros(total, dtype=np.bool_)

    @property
    def left(self) -> bool:
        """Whether some shares have not been handed out yet."""
        return self.handed_out < self.total

    @property
    def undone(self) -> int:
        """The number of shares that are not in."""
        return self.total - self.done

    def has(self, share: int) -> bool:
        """Whether a share is in."""
        return bool(self._in[share])

    def put(self, share: int) -> None:
        """Notes that the gradient of a share has been taken."""
        self.handed_out = max(self.handed_out, share + 1)
        self.done += not self._in[share]
        self._in[share] = True
        if share in self.returned:
            self.returned.remove(share)

    def take(self) -> int | None:
        """The number of the share to compute on next; None if all are handed out."""
        if self.returned:
            return self.returned.popleft()
        while self.left:
            self.handed_out += 1
            if not self._in[self.handed_out - 1]:
                return self.handed_out - 1
        return None

    def give_back(self, share: int) -> None:
        """Has a share that was handed out before handed out again."""
        if share not in self.returned:
            self.returned.append(share)

    def return_all(self, shares: Ranges, in_work: Collection[int | None]) -> None:
        """Has shares handed out again, except those that were not handed out yet and those in work or on the way."""
        coming = {*self.returned, *in_work}
        for first, stop in shares:
            self.returned.extend(share for share in range(first, min(stop, self.handed_out)) if share not in coming)

    def missing(self) -> Ranges:
        """The shares that are not in, as ranges."""
        return ranges_of(~self._in)

    def state_dict(self, waiting: Iterable[int]) -> dict[str, Any]:
        """The state for a snapshot that does not hold the gradients of the shares `waiting`, which are in."""
        kept = self._in.copy()
        kept[list(waiting)] = False
        return {"handed_out": self.handed_out, "in": [list(each) for each in ranges_of(kept)]}

    def load_state_dict(self, state: Any) -> None:
        """Goes on from what `state_dict` gave: shares that were handed out and are not in are handed out again.

        Raises:
            MalformedError: it is no such state.
        """
        if not isinstance(state, Mapping) or not {"handed_out", "in"} <= state.keys():
            raise MalformedError("it does not say which shares of the data are in")
        handed_out, there = state["handed_out"], ranges(state["in"], self.total)
        if type(handed_out) is not int or not (there[-1][1] if there else 0) <= handed_out <= self.total:
            raise MalformedError(
                f"it says that {str(handed_out)[:40]} shares of {self.total} were handed out, of which others are in"
            )
        self.handed_out = handed_out
        self._in[:] = False
        for first, stop in there:
            self._in[first:stop] = True
        self.done = int(self._in.sum())
        self.returned = deque(np.flatnonzero(~self._in[:handed_out]).tolist())


def ranges_of(chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Ranges:
    """The places at which an array is true, as ranges."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(first, stop) for first, stop in edges.reshape(-1, 2).tolist()]


def ranges(entries: Any, total: int) -> Ranges:
    """Reads ranges of the numbers of `total` shares that were written as lists.

    Raises:
        MalformedError: they are no such ranges, or they name a share twice or one that there is not.
    """
    found: list[tuple[int, int]] = []
    if not isinstance(entries, list):
        raise MalformedError(f"{str(entries)[:100]!r} stands where shares belong")
    for entry in entries:
        whole = isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)
        if not whole or not 0 <= entry[0] < entry[1]:
            raise MalformedError(f"{str(entry)[:100]!r} stands where shares from one to another belong")
        first, stop = entry
        if stop > total:
            raise MalformedError(f"it names the share {stop - 1}, but there are {total}, from 0")
        if found and first < found[-1][1]:
            raise MalformedError(f"it names the share {first} twice")
        found.append((first, stop))
    return found


def in_words(shares: Ranges, most: int = 10) -> str:
    """Shares in words, such as "3, 7 to 9 and others": of more than `most` ranges, the first."""
    words = [str(first) if stop == first + 1 else f"{first} to {stop - 1}" for first, stop in shares[:most]]
    return ", ".join(words) + (" and others" if len(shares) > most else "")
