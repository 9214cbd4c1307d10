"""Requests: messages under way; and windows, memory that the ranks of a node share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ANY = -1
"""As the source of a receive, stands for whichever rank's message comes first."""


class Request(ABC):
    """A message under way. Its buffer belongs to the transport until `wait` returns.

    Attributes:
        finished: when the message was complete, in seconds on the transport's clock; None if not yet, or if the wires
            do not tell.
    """

    finished: float | None = None

    @abstractmethod
    def wait(self) -> int:
        """Wait until the message has been sent or received.

        Returns:
            The rank that sent the message (for a receive) or that it was sent to (for a send).

        Raises:
            DeadlineError: it took longer than the transport's deadline; the message names the waiting rank, the
                operation and the peer.
        """


class Done(Request):
    """Something that was complete before anybody could wait for it.

    Args:
        peer: what `wait` returns.
    """

    def __init__(self, peer: int) -> None:
        self._peer = peer

    def wait(self) -> int:
        """Returns the peer at once."""
        return self._peer


class Windows(ABC):
    """Memory that the ranks of one node share: a window for each, which all of them can read and write.

    Attributes:
        buffers: every window, (nbytes,) bytes each, in the order of the node's ranks.
    """

    buffers: Sequence[NDArray[np.uint8]]

    @abstractmethod
    def barrier(self) -> None:
        """Waits until every rank of the node has called it; what each wrote before, all can read afterwards.

        Raises:
            DeadlineError: a rank did not come in time.
        """

    def close(self) -> None:  # noqa: B027 - ordinary memory goes with the last who uses it
        """Give the memory back. Every rank of the node calls it, at its own time, and does not touch it afterwards."""
