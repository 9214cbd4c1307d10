"""Shares of the data: who computes on which, and what becomes of the share of a worker that goes away."""

from collections import deque
from collections.abc import Iterable


class Shares:
    """Hands out the numbers of equal shares of the data, in order, until each has brought a gradient.

    A share whose worker goes away before its gradient has come is handed out again, before any new one.

    Args:
        total: how many shares there are.

    Attributes:
        total: how many shares there are.
        handed_out: how many have been handed out at least once.
        returned: the numbers of the shares that have come back without a gradient, in order.
        done: the number of shares that have brought a gradient.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.handed_out = 0
        self.returned: deque[int] = deque()
        self.done = 0

    @property
    def left(self) -> bool:
        """Whether some shares have not been handed out yet."""
        return self.handed_out < self.total

    @property
    def undone(self) -> int:
        """The number of shares that have not brought a gradient yet."""
        return max(0, self.total - self.done)

    def take(self) -> int | None:
        """The number of the share to compute on next; None if all are handed out."""
        if self.returned:
            return self.returned.popleft()
        if not self.left:
            return None
        self.handed_out += 1
        return self.handed_out - 1

    def restore(self, handed_out: int, unsettled: Iterable[int]) -> None:
        """Goes on from another server's state: shares handed out, and those whose gradient does not count."""
        self.handed_out = handed_out
        self.returned = deque(unsettled)
        self.done = handed_out - len(self.returned)
