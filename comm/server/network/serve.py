"""The loop of a server on a network: hear, answer, look who is silent, keep what must not be lost."""

import time
from collections.abc import Callable

from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.sockets import Listener

TICK_SECONDS = 0.05

STARTED = time.time() - time.monotonic()


def steady_time() -> float:
    """The time in seconds as `time.time` has it, but one that nobody sets forward or back while the program runs."""
    return STARTED + time.monotonic()


def serve(
    listener: Listener, server: NetworkServer, done: Callable[[float], bool], keep: Callable[[], None], interval: float
) -> None:
    """Answers the requests to a server until `done` says to end.

    Args:
        listener: where requests arrive.
        server: the server that answers them.
        done: called with the time in seconds, returns whether to end.
        keep: called about every `interval` seconds in which something has changed, and when everything is in.
        interval: seconds of work that may be lost, at most.
    """
    now = ticked = kept = steady_time()
    progress = server.progress
    while not done(now):
        arrived = listener.receive(TICK_SECONDS)
        now = steady_time()
        outgoing = server.receive(*arrived, now) if arrived is not None else []
        if now - ticked >= TICK_SECONDS:
            outgoing += server.tick(now)
            server.counts["turned away"] = listener.turned_away
            ticked = now
        for target, frames in outgoing:
            listener.send(target, frames)
        completed = server.ending.complete and not server.ending.kept
        if completed or (now - kept >= interval and server.progress != progress):
            keep()
            server.ending.kept = server.ending.complete
            kept, progress = now, server.progress
