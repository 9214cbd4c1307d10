"""The status of a server on a network: what it answers to whoever asks how things are."""

from collections import deque
from collections.abc import Mapping
from typing import Any, TypedDict

from bigbatch.comm.schema import Amount, Count
from bigbatch.comm.server.network.membership import Membership
from bigbatch.comm.server.network.shares import Shares
from bigbatch.comm.server.shard import Shard


class SharesStatus(TypedDict):
    """How far the shares of the data are handed out."""

    handed_out: Count
    returned: Count
    of: Count


class WorkerStatus(TypedDict):
    """The state of a worker, as its server sees it."""

    worker: Count
    pushed: Count
    clock: int
    has_version: int | None
    silent_seconds: float
    waits: bool


class ServerStatus(TypedDict):
    """What a server answers to whoever asks for its status."""

    versions: Count
    staleness: dict[str, Count]
    gradients_taken: Count
    gradients_dropped: Count
    gradients_lost: Count
    shares: SharesStatus
    tokens: Amount
    updates_per_second: float
    tokens_per_second: float
    counts: dict[str, Count]
    workers: list[WorkerStatus]


RATE_SECONDS = 10.0
"""Seconds, about, over which the rates of a status are taken."""


class Rates:
    """Measures how fast a shard was updated in about the last `RATE_SECONDS` seconds.

    Args:
        shard: the shard whose updates are counted.
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
        """The recent rates as (updates, tokens) per second."""
        last = (now, self._shard.version, self._shard.tokens)
        first = self._looked[0] if self._looked else last
        seconds = max(last[0] - first[0], 1e-9)
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


def status_of(
    shard: Shard, shares: Shares, members: Membership, rates: Rates, counts: Mapping[str, int], now: float
) -> dict[str, Any]:
    """Describes the state of a server, in types that JSON can write.

    Args:
        shard: the shard that is served.
        shares: the shares of the data.
        members: the workers' sessions.
        rates: how fast the shard was updated lately.
        counts: maps each event that is counted to how often it has happened.
        now: the time in seconds.
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
