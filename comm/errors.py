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
    """What was asked for cannot be done."""


class LaunchError(BigBatchError):
    """The processes were not started as the work needs them."""


class MismatchError(BigBatchError):
    """The ranks do not agree on what they are about to do."""


class CommunicationError(BigBatchError):
    """The wires failed."""


class DeadlineError(CommunicationError):
    """A wait took longer than the transport's deadline."""


class MalformedError(CommunicationError):
    """What arrived is no message of ours, or not the one that belongs there."""


class DeadlockError(CommunicationError):
    """Every rank of an in-process cluster waits for another."""
