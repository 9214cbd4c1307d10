"""The clock of servers: it says about when things were, across restarts, and measures intervals without jumps."""

import time

_START = time.time() - time.monotonic()


def server_time() -> float:
    """The seconds since 1970 that the system's clock showed when this process began, and those that passed since then.

    A snapshot's times mean something to the process that reads it, and yet no interval is changed by somebody who sets
    the system's clock.
    """
    return _START + time.monotonic()
