"""Transports: how bytes move between two ranks, and what time it is."""

import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import numpy as np

from bigbatch.comm.buffers import Buffer, add_in_place
from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlineError
from bigbatch.comm.kinds import SECONDS, checked
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.queue import CommunicationQueue
from bigbatch.comm.wires.recording import Trace
from bigbatch.comm.wires.request import ANY, Request, Windows

Result = TypeVar("Result")


class Transport(ABC):
    """Moves flat buffers between the ranks of one job.

    A transport is a context: leaving it closes it, unless an error has ended the work of this rank.

    Attributes:
        rank: this process's number, 0 to size - 1.
        size: how many ranks there are.
        deadline: seconds after which a wait gives up.
        messages_sent: messages sent by this rank so far.
        bytes_sent: bytes sent by this rank so far, headers of the wire's own protocol not included.
        nodes: the ranks of each machine, in ascending order.
        gamma: seconds that adding, rounding or widening a byte takes on a simulated clock.
        threaded: whether a thread other than the main one may drive it, one thread at a time.
        trace: records what this rank does; None if nothing is recorded.
        board: where ranks that share a process and a simulated clock show each other things, in no time; None if they
            do not, so that only messages reach the others.
    """

    rank: int
    size: int
    threaded: bool = True
    gamma: float = 0.0
    trace: Trace | None
    board: dict[Any, Any] | None = None

    def __init__(self, rank: int, size: int, deadline: float = DEFAULT_DEADLINE) -> None:
        self.rank = rank
        self.size = size
        self.deadline = checked("The deadline", SECONDS, deadline)
        self.messages_sent = 0
        self.bytes_sent = 0
        self.nodes = one_node(size)
        self.trace = None
        self._scratch = np.empty(0, dtype=np.uint8)

    @property
    def wires(self) -> str:
        """Identifies what moves the bytes, so that measurements of different wires are kept apart."""
        return type(self).__name__

    @property
    def node(self) -> tuple[int, ...]:
        """The ranks that share this rank's machine, itself among them."""
        return next(node for node in self.nodes if self.rank in node)

    def isend(self, buffer: Buffer, target: int, tag: int = 0) -> Request:
        """Begin to send `buffer` to rank `target`; it must not change before `wait` on the result returns.

        Messages between the same two ranks with the same tag arrive in the order sent.

        Raises:
            ConfigurationError: the buffer is not flat and contiguous, or there is no such rank.
        """
        self._check(buffer, target)
        self.count(messages=1, bytes_=buffer.nbytes)
        if self.trace is None:
            return self._isend(buffer, target, tag)
        return self.trace.message("send", partial(self._isend, buffer, target, tag), target, tag, buffer.nbytes)

    def irecv(self, buffer: Buffer, source: int = ANY, tag: int = 0) -> Request:
        """Begin to receive into `buffer`, from rank `source` or from any; `wait` on the result says from whom.

        Raises:
            ConfigurationError: the buffer is not flat and contiguous, or there is no such rank.
        """
        self._check(buffer, source if source != ANY else self.rank)
        if self.trace is None:
            return self._irecv(buffer, source, tag)
        return self.trace.message("receive", partial(self._irecv, buffer, source, tag), source, tag, buffer.nbytes)

    def count(self, *, messages: int, bytes_: int) -> None:
        """Adds to the counters of the messages and bytes that this rank has sent."""
        self.messages_sent += messages
        self.bytes_sent += bytes_

    @abstractmethod
    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request: ...

    @abstractmethod
    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request: ...

    def barrier(self) -> None:
        """Waits until every rank of the transport has called it.

        A dissemination barrier: in round k everyone tells the rank 2^k further on, so that after ⌈log2 p⌉ rounds
        everyone has heard, directly or not, from all (Hensgen, Finkel and Manber 1988).
        """
        token, heard = np.zeros(1, dtype=np.uint8), np.empty(1, dtype=np.uint8)
        distance = 1
        while distance < self.size:
            arriving = self.irecv(heard, (self.rank - distance) % self.size, tag=BARRIER_TAG)
            self.isend(token, (self.rank + distance) % self.size, tag=BARRIER_TAG).wait()
            arriving.wait()
            distance *= 2

    def exchange(self, text: str) -> list[str | None]:
        """Gives every rank all ranks' texts, by rank; None for ranks that do not come within half of the deadline.

        Rank 0 collects the texts and sends everyone the list, so that the ranks that came all hear which did not. It
        takes `2(size - 1)` messages each way, and so is meant for small texts, rarely exchanged.

        Raises:
            DeadlineError: rank 0 itself did not come.
        """
        if self.rank:
            self._send_text(0, text)
            heard: list[str | None] = json.loads(self._receive_text(0))
            return heard
        texts: list[str | None] = [text, *[None] * (self.size - 1)]
        deadline = self.deadline
        self.deadline = deadline / 2
        try:
            for source in range(1, self.size):
                try:
                    texts[source] = self._receive_text(source)
                except DeadlineError:
                    self.deadline = min(self.deadline, STRAGGLER_SECONDS)
        finally:
            self.deadline = checked("The deadline", SECONDS, deadline)
        for target, theirs in enumerate(texts):
            if target and theirs is not None:
                self._send_text(target, json.dumps(texts))
        return texts

    def _send_text(self, target: int, text: str) -> None:
        content = np.frombuffer(bytearray(text.encode()), dtype=np.uint8)
        self.isend(np.array([len(content)]), target, TEXT_TAG).wait()
        self.isend(content, target, TEXT_TAG).wait()

    def _receive_text(self, source: int) -> str:
        length = np.empty(1, dtype=np.int64)
        self.irecv(length, source, TEXT_TAG).wait()
        content = np.empty(int(length[0]), dtype=np.uint8)
        self.irecv(content, source, TEXT_TAG).wait()
        return content.tobytes().decode()

    def arrange(self, node_size: int) -> None:
        """Treat every `node_size` consecutive ranks as a node, as if there were more machines than there are.

        Raises:
            ConfigurationError: a node would then reach over two machines.
        """
        pretended = consecutive_nodes(self.size, node_size)
        for node in pretended:
            if not any(set(node) <= set(real) for real in self.nodes):
                raise ConfigurationError(
                    f"With {node_size} ranks a node, the ranks {', '.join(map(str, node))} would share one, but they "
                    f"run on different machines. The machines' ranks are {[list(real) for real in self.nodes]}."
                )
        self.nodes = pretended

    def split(self, ranks: Sequence[int]) -> "Transport":
        """Makes a transport between some of the ranks, numbered anew in the order given; they call it together."""
        return Group(self, ranks)

    def windows(self, nbytes: int) -> Windows:
        """Memory shared with the other ranks of this node, filled with zeros; all of them call it together.

        Args:
            nbytes: bytes of each rank's window.

        Raises:
            ConfigurationError: this transport cannot share memory.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot share {nbytes} bytes of memory between ranks: start them with mpirun."
        )

    @property
    def shares_memory(self) -> bool:
        """Whether the ranks of a node can share memory, by `windows`."""
        return type(self).windows is not Transport.windows

    def start_thread(self, work: Callable[["Transport"], None]) -> Request:
        """Begin `work` beside this rank's own, on an end of the same wires with counters of its own.

        The two take each other's messages if they receive with the same tag. Each may send to the other, as to its
        own rank.

        Returns:
            Its `wait` returns when the work has ended. An error that it ends in is raised there, or in whichever
            wait of this rank comes before.

        Raises:
            BigBatchError: as `check_threads`.
        """
        self.check_threads()
        return self._start_thread(work)

    def check_threads(self) -> None:
        """Raises an error if `start_thread` cannot run work beside this rank's own.

        Raises:
            ConfigurationError: this transport does nothing beside a rank's own work.
            LaunchError: it would, if the processes had been started in another way.
        """
        raise ConfigurationError(
            f"{type(self).__name__} does nothing beside a rank's own work, so that no rank can train and serve: start "
            "them with mpirun."
        )

    def _start_thread(self, work: Callable[["Transport"], None]) -> Request:
        raise NotImplementedError

    def queue(self, idle: Callable[[], AbstractContextManager[None]] = nullcontext) -> CommunicationQueue:
        """A queue on which communication goes on beside this rank's own work, if this transport can do that.

        Args:
            idle: makes a context that is entered while somebody waits for the queue.
        """
        return CommunicationQueue(threaded=self.threaded and self.size > 1, idle=idle)

    def _second_end(self) -> Self:
        """Another end of this rank's wires, with counters and scratch of its own."""
        end = copy.copy(self)
        end.messages_sent = end.bytes_sent = 0
        end._scratch = np.empty(0, dtype=np.uint8)
        end.trace = None if self.trace is None else self.trace.of_thread(end.now)
        return end

    def scratch(self, elements: int, dtype: np.dtype[Any]) -> Buffer:
        """Memory for data that arrives, (elements,), its contents unknown; valid until the next call.

        The same memory is handed out again: fresh pages would cost as much as moving the data.
        """
        nbytes = elements * dtype.itemsize
        if len(self._scratch) < nbytes:
            self._scratch = np.empty(nbytes, dtype=np.uint8)
        return self._scratch[:nbytes].view(dtype)

    def now(self) -> float:
        """The time on this rank's clock in seconds, of which only differences mean anything."""
        return time.perf_counter()

    def span(self, kind: str, name: str = "", nbytes: int = 0) -> AbstractContextManager[None]:
        """Records what is done within the context, if there is a trace; `bigbatch.comm.wires.recording` has kinds."""
        return nullcontext() if self.trace is None else self.trace.span(kind, name, nbytes)

    def update(self, number: int) -> AbstractContextManager[None]:
        """Records what is done within the context as update `number`, from 1, if there is a trace."""
        return nullcontext() if self.trace is None else self.trace.update(number)

    def spend(self, seconds: float, name: str = "") -> None:  # noqa: B027 - real clocks run by themselves
        """Charge `seconds` of computation to a simulated clock; on a real one computing takes its own time.

        Args:
            seconds: how long it takes.
            name: what is computed, for a trace; within a span of computing or adding, that says it.
        """

    def once(self, work: Callable[[], Result]) -> Result | None:  # noqa: ARG002 - for others
        """Have one rank do for all what would be the same on each, in no time on a simulated clock.

        Every rank that takes part asks for the same works in the same order.

        Args:
            work: computes only; it must not wait for anything.

        Returns:
            What `work` returned to the rank that came first; None, and nothing was done, where ranks share no process:
            each must then do its part.
        """
        return None

    def add(self, values: Buffer, arrived: Buffer, adding: Callable[[Buffer, Buffer], None] = add_in_place) -> None:
        """Add what arrived to `values`, (elements,), in place; a simulated clock charges for the bytes of `values`.

        Args:
            values: (elements,) this rank's own numbers.
            arrived: (elements,) what arrived, in whichever format it was sent.
            adding: adds them, called with both.
        """
        if self.trace is None:
            self._add(values, arrived, adding)
        else:
            with self.trace.span("reduce", nbytes=arrived.nbytes):
                self._add(values, arrived, adding)

    def _add(self, values: Buffer, arrived: Buffer, adding: Callable[[Buffer, Buffer], None]) -> None:
        adding(values, arrived)

    def convert(self, values: Buffer) -> None:  # noqa: B027 - real clocks run by themselves
        """Charge a simulated clock for rounding `values`, (elements,), to half precision, or for widening them.

        Whoever rounds or widens says so; adding what arrived in half precision, by `add`, is charged there.
        """

    def close(self) -> None:  # noqa: B027 - most wires hold nothing
        """Give back what the transport holds; all ranks close together."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # else the others would not come to close with a rank that has failed
            self.close()

    def abort(self, code: int) -> NoReturn:
        """End every process of the job at once, this one with exit status `code`."""
        raise SystemExit(code)

    def _check(self, buffer: Buffer, peer: int) -> None:
        if not 0 <= peer < self.size:
            raise ConfigurationError(f"Rank {self.rank} addressed rank {peer}, but the ranks are 0 to {self.size - 1}.")
        if buffer.ndim != 1 or not buffer.flags.c_contiguous:
            raise ConfigurationError(
                f"Rank {self.rank} passed a buffer of shape {buffer.shape} and strides {buffer.strides}; only flat, "
                "contiguous buffers can be sent without a copy: pass buffer.reshape(-1) of a contiguous array."
            )


_current: ContextVar["Transport | None"] = ContextVar("_current", default=None)


def current_transport() -> "Transport | None":
    """The rank's end of the wires in whose work this is called, inside `Cluster.run`; None elsewhere."""
    return _current.get()


def work_on(transport: "Transport") -> None:
    """Have `current_transport` give this transport, for whatever this thread or greenlet does from now on."""
    _current.set(transport)


@lru_cache(maxsize=4)
def one_node(size: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each node when all share one; the same tuple for all ranks of a process."""
    return (tuple(range(size)),)


def consecutive_nodes(size: int, node_size: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each node when every `node_size` consecutive ones share one; the last may have fewer."""
    return tuple(tuple(range(first, min(first + node_size, size))) for first in range(0, size, node_size))


@lru_cache(maxsize=4)
def nodes_among(nodes: tuple[tuple[int, ...], ...], ranks: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The nodes of some of the ranks, which are numbered anew from 0 in the order given."""
    number = {rank: place for place, rank in enumerate(ranks)}
    inside = [tuple(sorted(number[rank] for rank in node if rank in number)) for node in nodes]
    return tuple(node for node in inside if node)


BARRIER_TAG, TEXT_TAG = 32_000, 31_000
"""Kept apart from the tags of ordinary messages; below 32,767, the least that MPI promises."""

STRAGGLER_SECONDS = 1.0
"""Seconds that an exchange waits for each further rank, once one rank did not come in its time."""


class Group(Transport):
    """Some of a transport's ranks, numbered anew from 0 in the order given; it shares the parent's counters.

    Args:
        parent: the transport that moves the bytes.
        ranks: the parent's ranks that belong to the group; the caller must be one of them.
    """

    def __init__(self, parent: Transport, ranks: Sequence[int]) -> None:
        super().__init__(list(ranks).index(parent.rank), len(ranks), parent.deadline)
        self._parent = parent
        self._ranks = list(ranks)
        self.nodes = nodes_among(parent.nodes, tuple(self._ranks))

    def count(self, *, messages: int, bytes_: int) -> None:
        """Counts nothing, because the parent counts what passes through it."""

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        return self._parent.isend(buffer, self._ranks[target], tag)

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        if source == ANY:
            return FromAnyInGroup(self._parent.irecv(buffer, ANY, tag), self._ranks, tag)
        return self._parent.irecv(buffer, self._ranks[source], tag)

    def now(self) -> float:
        """The time on the parent's clock, in seconds."""
        return self._parent.now()

    def span(self, kind: str, name: str = "", nbytes: int = 0) -> AbstractContextManager[None]:
        """Records what is done within the context in the parent's trace, which has the messages too."""
        return self._parent.span(kind, name, nbytes)

    def spend(self, seconds: float, name: str = "") -> None:
        """Charges `seconds` of computation to the parent's clock, if that is simulated."""
        self._parent.spend(seconds, name)

    def _add(self, values: Buffer, arrived: Buffer, adding: Callable[[Buffer, Buffer], None]) -> None:
        self._parent.add(values, arrived, adding)

    def convert(self, values: Buffer) -> None:
        """Charges the parent's clock for converting, if that is simulated."""
        self._parent.convert(values)

    def abort(self, code: int) -> NoReturn:
        """End every process of the parent's job."""
        self._parent.abort(code)


class FromAnyInGroup(Request):
    """A message from whichever rank of a group sends first. Ranks outside the group must not use its tag meanwhile.

    Args:
        request: the parent's request.
        ranks: the parent's ranks that belong to the group.
        tag: the message's tag.
    """

    def __init__(self, request: Request, ranks: Sequence[int], tag: int) -> None:
        self._request = request
        self._ranks = ranks
        self._tag = tag

    def wait(self) -> int:
        """Wait for the message; returns the sender's number in the group."""
        source = self._request.wait()
        if source not in self._ranks:
            raise CommunicationError(
                f"Rank {source} sent a message with the tag {self._tag} to a rank of the group {list(self._ranks)}, to "
                "which it does not belong. Give the messages of different groups different tags."
            )
        return self._ranks.index(source)
