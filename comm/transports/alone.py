"""The transport of a job with one rank: a real clock and nobody to talk to."""

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.errors import CommunicationError
from bigbatch.comm.transport import Buffer, Request, Transport, Windows


class OwnWindow(Windows):
    """The window of the only rank."""

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        self.buffers = [buffer]

    def barrier(self) -> None:
        """Everyone is here."""


class Alone(Transport):
    """One rank, no wires."""

    def __init__(self) -> None:
        super().__init__(rank=0, size=1)

    def windows(self, nbytes: int) -> Windows:
        """Ordinary memory: there is nobody to share it with."""
        return OwnWindow(np.zeros(nbytes, dtype=np.uint8))

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:  # noqa: ARG002 - there is nobody
        self._refuse()

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:  # noqa: ARG002 - there is nobody
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CommunicationError(
            "Rank 0 is the only rank, so there is nobody to exchange a message with: start more ranks, or use an "
            "algorithm that does nothing for one."
        )
