"""The status of a server on a network: what it answers to whoever asks how things are."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from bigbatch.comm.server.network.membership import Membership
from bigbatch.comm.server.network.shares import Shares
from bigbatch.comm.server.shard import Shard

RATE_SECONDS = 10.0
"""The rates that a status shows are over about that long."""


class Rates:
    """How fast a shard was updated lately.

    Args:
        shard: the shard.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._looked: deque[tuple[float, int, float]] = deque()

    def look(self, now: float) -> None:
        """Note where the shard stands now, in seconds; to be called several times a second."""
        self._looked.append((now, self._shard.version, self._shard.tokens))
        while len(self._looked) > 2 and self._looked[1][0] < now - RATE_SECONDS:
            self._looked.popleft()

    def per_second(self, now: float) -> tuple[float, float]:
        """(updates, tokens) per second."""
        last = (now, self._shard.version, self._shard.tokens)
        first = self._looked[0] if self._looked else last
        seconds = max(last[0] - first[0], 1e-9)
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


def status_of(
    shard: Shard, shares: Shares, members: Membership, rates: Rates, counts: Mapping[str, int], now: float
) -> dict[str, Any]:
    """How things are on a server, in types that JSON can write.

    Args:
        shard: what is served.
        shares: the data.
        members: the workers.
        rates: how fast the shard was updated lately.
        counts: what has happened -> how often.
        now: in seconds.
    """
    updates, tokens = rates.per_second(now)
    return {
        **shard.statistics(),
        "shares": {"handed_out": shares.handed_out, "returned": len(shares.returned), "of": shares.total},
        "tokens": shard.tokens,
        "updates_per_second": updates,
        "tokens_per_second": tokens,
        "gradients_lost": members.lost,
        "updates_skipped": shard.skipped,
        "counts": dict(counts),
        "workers": [
            {
                "worker": session.worker,
                "joined": session.life,
                "pushed": session.pushed,
                "clock": shard.clocks.pushed[session.worker],
                "has_version": shard.has(session.worker) if session.answered[0] >= 0 else None,
                "silent_seconds": now - session.heard,
                "waits": session.asked != session.answered,
            }
            for session in members.present
            if session.worker is not None
        ],
    }
