"""MPI, through mpi4py's upper-case calls, which send NumPy buffers where they lie."""

import math
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlineError, LaunchError, MismatchError
from bigbatch.comm.transports.mpi_library import library_version, load_mpi
from bigbatch.comm.transports.segments import forget_own
from bigbatch.comm.transports.waits import OnThreads, wait_until
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.life import elsewhere
from bigbatch.comm.wires.request import ANY, Done, Request, Windows
from bigbatch.comm.wires.transport import Transport, nodes_among

if TYPE_CHECKING:
    from mpi4py import MPI

CACHE_LINE = 64
"""Bytes of a cache line; cores would keep taking a line with two counters out of each other's caches."""


SEND, RECEIVE = "send to", "receive from"

LARGEST_MESSAGE = 2**30
"""Bytes of the largest message that is given to MPI at once. Open MPI 5 counts in 32 bits, and refuses 2 GiB."""


def pieces(buffer: Buffer) -> list[Buffer]:
    """A flat buffer as views of at most `LARGEST_MESSAGE` bytes each, in order: at least one, even of no bytes."""
    step = max(1, LARGEST_MESSAGE // buffer.itemsize)
    return [buffer[first : first + step] for first in range(0, max(1, len(buffer)), step)]


class MPIRequest(Request):
    """A message that MPI is sending or receiving."""

    def __init__(
        self, transport: "MPITransport", pending: "MPI.Request", operation: str, peer: int, buffer: Buffer
    ) -> None:
        self._transport = transport
        self._pending = pending
        self._operation = operation
        self._peer = peer
        self._buffer = buffer

    def wait(self) -> int:
        """Waits until MPI has sent or received the message; returns the rank at the other end."""
        status = self._transport.status
        try:
            arrived = partial(self._pending.Test, status)
            wait_until(arrived, self._transport.deadline, self._give_up, self._transport.check_on_threads)
        except self._transport.error as error:
            raise CommunicationError(
                f"Rank {self._transport.rank} could not {self._operation} {self._named()} {self._what()}: {error}. "
                "Every rank must make the same calls, with buffers of the same length."
            ) from error
        if self._operation == SEND:
            return self._peer
        source: int = status.Get_source()
        if (received := status.Get_count()) != self._buffer.nbytes:
            raise MismatchError(
                f"Rank {source} sent {received} bytes to rank {self._transport.rank}, which expected {self._what()}. "
                "Every rank must make the same calls, with buffers of the same length."
            )
        return source

    def _named(self) -> str:
        return "any rank" if self._peer == ANY else f"rank {self._peer}"

    def _what(self) -> str:
        return f"{len(self._buffer)} × {self._buffer.dtype}, {self._buffer.nbytes} bytes"

    def _give_up(self) -> NoReturn:
        raise DeadlineError(
            f"Rank {self._transport.rank} waited {self._transport.deadline:g} s to {self._operation} {self._named()} "
            f"({self._what()}). Either that rank is stuck, or it is slow: then allow more with --deadline.{elsewhere()}"
        )


class PiecesRequest(Request):
    """A message so long that it travels in several: MPI keeps those between two ranks in order.

    A receive from any rank learns from the first piece who sends the others, and asks for them then. So that no other
    receive from any rank takes them, only one of such length may wait under a tag at a time.

    Args:
        first: the request of the first piece.
        rest: makes the requests of the other pieces, given the rank that `first` is from or to.
        known: that rank, if it is known before; the other requests are then made at once.
    """

    def __init__(self, first: Request, rest: Callable[[int], list[Request]], known: int | None) -> None:
        self._first = first
        self._rest = rest
        self._others = None if known is None else rest(known)

    def wait(self) -> int:
        """Waits until every piece has been sent or received; returns the rank at the other end."""
        peer = self._first.wait()
        for other in self._rest(peer) if self._others is None else self._others:
            other.wait()
        return peer


class MPITransport(OnThreads):
    """All ranks of an MPI job, or some of them.

    Args:
        expected: how many ranks the launcher says it started, or None if it says nothing.
        deadline: seconds after which a wait gives up.
        communicator: the MPI communicator of the ranks, if not all of them; the transport takes it over.

    Raises:
        LaunchError: there is no MPI library, or it does not belong to the launcher.
    """

    def __init__(
        self,
        expected: int | None = None,
        deadline: float = DEFAULT_DEADLINE,
        communicator: "MPI.Intracomm | None" = None,
    ) -> None:
        if communicator is None:
            check_room_to_start()
        mpi = load_mpi()
        self._communicator = mpi.COMM_WORLD.Dup() if communicator is None else communicator
        self._any = mpi.ANY_SOURCE
        self._in_place = mpi.IN_PLACE
        self.status = mpi.Status()
        self._windows_made = count()
        self._closed: dict[int, MPIWindows] = {}
        self.error: type[Exception] = mpi.Exception
        self.threaded = mpi.Query_thread() >= mpi.THREAD_SERIALIZED
        super().__init__(self._communicator.Get_rank(), self._communicator.Get_size(), deadline)
        if expected is not None and expected != self.size:
            raise LaunchError(
                f"The variables of a launcher tell of {expected} processes, but the MPI library ({library_version()}) "
                f"sees {self.size}. If they are left over from another job or shell, unset them (bigbatch-exp doctor "
                "lists them); otherwise use the mpirun that came with that library (under Slurm: srun --mpi=pmi2), or "
                "install one pair with: pip install 'bigbatch[mpich]'"
            )

        on_node = self._communicator.Split_type(mpi.COMM_TYPE_SHARED, self.rank)
        firsts = self._communicator.allgather(on_node.bcast(self.rank, root=0))
        if communicator is None and on_node.Get_rank() == 0:
            forget_own()  # everyone has it, and whatever ends the job now, nothing is left of it
        on_node.Free()
        self.nodes = tuple(
            tuple(rank for rank in range(self.size) if firsts[rank] == first) for first in sorted(set(firsts))
        )

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        def send(piece: Buffer) -> Request:
            pending = self._communicator.Isend(piece.view(np.uint8), target, tag)
            return MPIRequest(self, pending, SEND, target, piece)

        if buffer.nbytes <= LARGEST_MESSAGE:
            return send(buffer)
        first, *others = pieces(buffer)
        return PiecesRequest(send(first), lambda _: list(map(send, others)), target)

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        def receive(piece: Buffer, peer: int) -> Request:
            pending = self._communicator.Irecv(piece.view(np.uint8), self._any if peer == ANY else peer, tag)
            return MPIRequest(self, pending, RECEIVE, peer, piece)

        if buffer.nbytes <= LARGEST_MESSAGE:
            return receive(buffer, source)
        first, *others = pieces(buffer)
        known = None if source == ANY else source
        return PiecesRequest(receive(first, source), lambda peer: [receive(one, peer) for one in others], known)

    def all_reduce(self, buffer: Buffer) -> None:
        """MPI's own all-reduce (sum) of `buffer`, (elements,), in place; it blocks.

        MPI does not report what it sends; the record gets the least that any all-reduce can send, 2((p-1)/p)n.
        """
        sums = buffer if buffer.itemsize > 2 else buffer.astype(np.float32)  # MPI has no half precision
        self.count(messages=0, bytes_=2 * (self.size - 1) * sums.nbytes // self.size)
        for piece in pieces(sums):
            self._communicator.Allreduce(self._in_place, piece)
        if sums is not buffer:
            buffer[:] = sums

    def all_to_all(self, own: Buffer, arrived: Buffer) -> Request:
        """MPI's own all-to-all: sends each rank its chunk of `own`, (ranks × elements,); it blocks.

        It takes at most `LARGEST_MESSAGE` bytes, as does `gather_in_place`.

        The record gets the (p-1)/p·n bytes that leave this rank.

        Args:
            own: the chunks for the ranks, one after the other.
            arrived: where the chunks of all ranks for this one land, by rank.
        """
        self.count(messages=0, bytes_=(self.size - 1) * own.nbytes // self.size)
        self._communicator.Alltoall(own.view(np.uint8), arrived.view(np.uint8))
        return Done(self.rank)

    def gather_in_place(self, everyones: Buffer) -> Request:
        """MPI's own all-gather: each rank's chunk of `everyones`, (ranks × elements,), goes to all; it blocks.

        The record gets the least that any all-gather can send, (p-1)/p·n bytes.
        """
        self.count(messages=0, bytes_=(self.size - 1) * everyones.nbytes // self.size)
        self._communicator.Allgather(self._in_place, everyones.view(np.uint8))
        return Done(self.rank)

    def split(self, ranks: Sequence[int]) -> Transport:
        """Makes a transport between some of the ranks, on an MPI communicator of their own."""
        everyone = self._communicator.Get_group()
        group = everyone.Incl(ranks)
        some = MPITransport(deadline=self.deadline, communicator=self._communicator.Create_group(group))
        some.nodes = nodes_among(self.nodes, tuple(ranks))
        group.Free()
        everyone.Free()
        return some

    def windows(self, nbytes: int) -> Windows:
        """Allocates an MPI shared-memory window of `nbytes` bytes for every rank of the node.

        Windows that all ranks have closed are freed first.

        Raises:
            ConfigurationError: on every rank, if a machine has too little shared memory. It would end with SIGBUS.
        """
        for number in sorted(set.intersection(*self._communicator.allgather(set(self._closed)))):
            self._closed.pop(number).free()
        own = socket.gethostname(), nbytes + 2 * CACHE_LINE, free_shared_memory()
        check_room(self._communicator.allgather(own))
        on_node = self._communicator.Split(self.nodes.index(self.node), self.rank)
        windows = MPIWindows(self, on_node, nbytes, partial(self._closed.__setitem__, next(self._windows_made)))
        on_node.Free()
        return windows

    def check_threads(self) -> None:
        """Refuses an MPI library that does not let two threads call it at the same time."""
        mpi = load_mpi()
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            raise LaunchError(
                "The MPI library lets only one thread in at a time, so that no rank can train and serve: use one that "
                "gives MPI_THREAD_MULTIPLE, which mpi4py asks for unless told otherwise (MPI4PY_RC_THREAD_LEVEL)."
            )

    def _second_end(self) -> Self:
        end = super()._second_end()
        end.status = load_mpi().Status()  # the two wait at the same time
        return end

    def share_address(self, address: str) -> str:
        """Sends rank 0's `address` to every rank, so that they can also connect by other means than MPI."""
        return str(self._communicator.bcast(address, root=0))

    def close(self) -> None:
        """Frees the MPI communicator."""
        self._communicator.Free()

    def abort(self, code: int) -> NoReturn:
        """Ends every process of the job, by MPI_Abort with the exit status `code`."""
        self._communicator.Abort(code)
        raise SystemExit(code)


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI libraries allocate it, on Linux
"""The file system whose memory processes share."""

ROOM_PER_RANK = 2**20
"""Shared memory that is left to the MPI library beside the windows, in bytes per rank."""

MPICH_PER_RANK = 5.2 * 2**20
"""Shared memory that MPICH 5 takes when it starts, in bytes per rank, as measured with 2, 4 and 8 ranks."""

MPICH_RANKS_HERE = "MPI_LOCALNRANKS"
"""The environment variable in which MPICH's launcher says how many ranks it has started on this machine."""


def free_shared_memory() -> int | None:
    """The bytes of shared memory that are free on this machine; None if that is not known."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux
        return None
    return found.f_bavail * found.f_frsize


def check_room_to_start() -> None:
    """Checks that MPICH has the shared memory with which it starts; it would end with SIGBUS.

    Raises:
        LaunchError: there is too little, whoever uses it; on every rank of this machine alike.
    """
    here = os.environ.get(MPICH_RANKS_HERE, "")
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux
        return
    size, needed = found.f_blocks * found.f_frsize, MPICH_PER_RANK * (int(here) if here.isdecimal() else 0)
    if needed > size:
        raise LaunchError(
            f"{SHARED_MEMORY} has {size / 2**20:,.0f} MB, and MPICH takes {needed / 2**20:,.0f} MB of shared memory to "
            f"start {here} ranks: give it more (docker run --shm-size={_power_of_two(needed)}m), or take fewer ranks."
        )


def _power_of_two(nbytes: float) -> int:
    """The next power of two, in MB, that leaves as much room again."""
    return int(2 ** math.ceil(math.log2(2 * nbytes / 2**20)))


def check_room(ranks: Sequence[tuple[str, int, int | None]]) -> None:
    """Checks that there is room for everybody's windows, on every machine.

    Args:
        ranks: for every rank its machine, the bytes that it is about to allocate, and those that are free there.

    Raises:
        ConfigurationError: there is none; all ranks raise it if all have the same arguments.
    """
    for machine in dict.fromkeys(name for name, *_ in ranks):
        sizes = [nbytes for name, nbytes, _ in ranks if name == machine]
        free = min((found for name, _, found in ranks if name == machine and found is not None), default=None)
        needed = sum(sizes) + len(sizes) * ROOM_PER_RANK
        if free is not None and needed > free:
            raise ConfigurationError(
                f"{SHARED_MEMORY} on {machine} has {free / 2**20:,.0f} MB free, and {len(sizes)} ranks need "
                f"{needed / 2**20:,.0f} MB of shared memory: give it more (docker run --shm-size="
                f"{_power_of_two(needed)}m), take fewer ranks or smaller buffers, or an "
                "all-reduce that sends messages, such as ring.",
                everywhere=True,
            )


class MPIWindows(Windows):
    """Windows allocated by MPI, and a barrier of counters in them that needs no message.

    Args:
        transport: the transport whose ranks share the memory.
        communicator: the ranks of this node.
        nbytes: bytes of each window.
        closed: is given these windows when this rank needs them no more.
    """

    def __init__(
        self,
        transport: MPITransport,
        communicator: "MPI.Comm",
        nbytes: int,
        closed: "Callable[[MPIWindows], None]",
    ) -> None:
        mpi = load_mpi()
        self._transport = transport
        self._closed = closed
        padded = -(-nbytes // CACHE_LINE) * CACHE_LINE
        self._window = mpi.Win.Allocate_shared(padded + CACHE_LINE, 1, comm=communicator)
        self._window.Lock_all(mpi.MODE_NOCHECK)
        whole = [np.frombuffer(self._window.Shared_query(rank)[0], dtype=np.uint8) for rank in range(communicator.size)]
        self.buffers = [memory[:nbytes] for memory in whole]
        self._counters = [memory[padded : padded + 8].view(np.int64) for memory in whole]
        self._own = self._counters[communicator.rank]
        self.buffers[communicator.rank][:] = 0
        self._own[0] = 0
        self._window.Sync()
        communicator.Barrier()
        self._round = 0

    def barrier(self) -> None:
        """Raises this rank's counter by one, and waits until the other counters of the node are as high."""
        self._round += 1
        self._window.Sync()
        self._own[0] = self._round
        for place, counter in enumerate(self._counters):
            if counter.item() < self._round:
                wait_until(partial(self._come, counter), self._transport.deadline, partial(self._late, place))
        self._window.Sync()

    def close(self) -> None:
        """Leaves the memory to be freed; arrays that view it must not be used any more.

        MPI frees a window on all ranks together, and this rank may close it at a time of its own, such as when its
        garbage collector finds a training that was refused. So it is freed when all ranks make the next windows.
        """
        self._closed(self)

    def free(self) -> None:
        """Gives the memory back to MPI; all ranks of the node together."""
        self._window.Unlock_all()
        self._window.Free()

    def _come(self, counter: NDArray[np.int64]) -> bool:
        return bool(counter[0] >= self._round)

    def _late(self, place: int) -> NoReturn:
        raise DeadlineError(
            f"Rank {self._transport.rank} waited {self._transport.deadline:g} s for rank {self._transport.node[place]} "
            "at a barrier in shared memory. Either that rank is stuck, or it is slow: then allow more with --deadline."
            f"{elsewhere()}"
        )
