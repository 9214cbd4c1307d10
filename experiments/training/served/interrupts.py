"""Signals that end a server or a worker in order, as Ctrl-C does."""

import signal


def interrupted_by_signals() -> None:
    """Has the signals that whoever stops a service sends, and a terminal that is closed, interrupt this program.

    A signal that is ignored, as `nohup` has it, stays so.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
