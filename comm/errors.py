"""Everything that can go wrong, as one small tree.

    BigBatchError
    ├── ConfigurationError     what was asked for cannot be done: an option, a file, a name
    ├── LaunchError            the processes were not started as the work needs them
    ├── MismatchError          the ranks do not agree on what they are about to do
    └── CommunicationError     the wires failed
        ├── DeadlineError      a wait took longer than allowed
        ├── MalformedError     what arrived is no message of ours
        └── DeadlockError      every rank of an in-process cluster waits for another

Each message says what happened, to whom, and what to do.
"""

INTERRUPTED = 130
"""The exit status of a program that was ended by Ctrl-C, as shells have it."""


class BigBatchError(Exception):
    """Any error that bigbatch raises on purpose.

    Args:
        message: what happened, to whom, and what to do.
        everywhere: whether every rank of the job raises this very error, so that one rank may speak for all.
    """

    def __init__(self, message: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class ConfigurationError(BigBatchError):
    """Raised when an option, a file or a name asks for something that cannot be done."""


class LaunchError(BigBatchError):
    """Raised when the processes were not started in the way that the work needs."""


class MismatchError(BigBatchError):
    """Raised when the ranks do not agree on what they are about to do."""


class CommunicationError(BigBatchError):
    """Raised when a message cannot be sent or received, or the other side has failed."""


class DeadlineError(CommunicationError):
    """Raised when a wait takes longer than the transport's deadline."""


class MalformedError(CommunicationError):
    """Raised when something arrives that is not a message of ours, or not the one that belongs there."""


class DeadlockError(CommunicationError):
    """Raised when every rank of an in-process cluster waits for another one."""


def exit_status(error: BaseException) -> int:
    """The exit status of a program that ends in an error: 2 for what was asked for, 1 for what went wrong."""
    return 2 if isinstance(error, ConfigurationError | LaunchError) else 1
