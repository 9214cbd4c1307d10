"""The end of a server's work: when every share is in, here and in the other parts, or nobody comes any more."""

from collections.abc import Callable

from bigbatch.comm.server.network.membership import Membership
from bigbatch.comm.server.network.messages import Stage
from bigbatch.comm.server.network.shares import Shares, in_words

ALONE_SECONDS, ALONE_SECONDS_IN_PARTS = 60.0, 600.0
"""Seconds without any worker after which a server that has handed out everything ends, though something is missing.
With several servers it is longer, since a worker may be waiting for another of them to be started again."""


LINGER_SECONDS, LONGEST_LINGER_SECONDS = 3.0, 30.0
"""Seconds for which a server that is done still answers its workers, who ask twice a second, that it is done. It is
longer if some are known that have not heard it."""

ASTRAY_SECONDS = 60.0
"""Seconds for which a server that is done expects that a worker that fell silent comes back."""


class Ending:
    """Decides how far a server's work is, and when it has ended.

    Args:
        shares: the shares of the data.
        members: the workers' sessions.
        parts: number of servers that hold a part of the parameters each.
        tell: called with a sentence, without its full stop, when the server waits for workers or gives up.

    Attributes:
        kept: whether the complete state is where a server that is started again finds it; set by whoever keeps it.
        released: whether all parts are known to have every share.
        given_up: whether it ends with something missing, because nobody has come for too long.
    """

    def __init__(self, shares: Shares, members: Membership, parts: int, tell: Callable[[str], None]) -> None:
        self.kept = self.released = self.given_up = False
        self._shares = shares
        self._members = members
        self._parts = parts
        self._tell = tell
        self._waits = False

    @property
    def complete(self) -> bool:
        """Whether every share is in here, none is to be computed again for others, and nobody is at work."""
        return not (self._shares.undone or self._shares.returned or self._members.present)

    @property
    def stage(self) -> Stage:
        """How far the work is."""
        if not (self.given_up or self.released) and (self._shares.undone or self._shares.returned):
            return Stage.OPEN if self._shares.left or self._shares.returned else Stage.CLOSING
        if self._members.present:
            return Stage.CLOSING
        if self._parts == 1 or self.released or self.given_up:
            return Stage.FINISHED
        return Stage.COMPLETE if self.kept else Stage.CLOSING

    def look(self, now: float) -> None:
        """Gives up what is missing when nobody comes for it; call it several times a second."""
        seconds = self._members.alone(now)
        if self._shares.left or self._members.present or self.stage is Stage.FINISHED:
            return
        longest = max(ALONE_SECONDS if self._parts == 1 else ALONE_SECONDS_IN_PARTS, 2 * self._members.patience)
        if seconds >= longest:
            self.given_up = True
            self._tell(self.missing_in_words or "Every share is in, but no worker says whether the other parts have it")
        elif self._shares.undone and not self._waits:
            self._waits = True
            self._tell(f"{self.missing_in_words}, and no worker is there; waiting {longest:g} s for one")

    def lingers(self, since: float, now: float) -> bool:
        """Whether a server whose work ended at `since` goes on to answer that it did, so that its workers end, too."""
        if now > since + LONGEST_LINGER_SECONDS:
            return False
        soon = now <= max(since, self._members.told) + LINGER_SECONDS
        return soon or self._members.expected(now, ASTRAY_SECONDS)

    @property
    def missing_in_words(self) -> str:
        """Which shares are not in, as a sentence without its full stop; empty if all are."""
        if not self._shares.undone:
            return ""
        which = in_words(self._shares.missing())
        return f"Of {self._shares.total} shares of the data, from 0, {self._shares.undone} are not trained: {which}"
