"""Recording a trace of what every rank does in the first updates of every arm."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bigbatch.comm.tracing.gather import clock_offset, gather, joined
from bigbatch.comm.wires.recording import Span, Trace
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.training.settings import ObservationSettings


class Tracing:
    """Records what every rank does in the first updates of every arm, if that was asked for.

    Start-up, and validation between updates, are not recorded.

    Args:
        transport: the transport between all ranks.
        settings: the options that say what to record.
        write: writes every rank's spans of all arms so far; called on rank 0 after each arm.
    """

    def __init__(
        self, transport: Transport, settings: ObservationSettings, write: Callable[[Sequence[Sequence[Span]]], None]
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._write = write
        self._ranks: list[list[Span]] = []

    @contextmanager
    def arm(self, name: str, *, works: bool) -> Iterator[None]:
        """Record one arm; all ranks enter and leave this context together.

        Args:
            name: name of the arm.
            works: whether this rank makes updates; a rank that only serves records everything that it does.
        """
        if not self._settings.trace:
            yield
            return
        transport = self._transport
        offset = clock_offset(transport)
        trace = transport.trace = Trace(transport.now, self._settings.trace_updates if works else None)
        yield
        transport.trace = None
        gathered = gather(transport, trace, offset, name)
        if transport.rank == 0:
            self._ranks = joined(self._ranks, gathered)
            self._write(self._ranks)
