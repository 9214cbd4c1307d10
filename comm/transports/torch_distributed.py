"""torch.distributed: gloo between processors, NCCL between GPUs."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from bigbatch.comm.buffers import Buffer, tensor_of
from bigbatch.comm.errors import CommunicationError, DeadlineError
from bigbatch.comm.transports.meeting import INTERFACE, Meeting
from bigbatch.comm.transports.mpi import MPITransport
from bigbatch.comm.transports.watchdog import give_way, watchdog
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.life import elsewhere, somebody_takes_time
from bigbatch.comm.wires.request import ANY, Request
from bigbatch.comm.wires.transport import Transport

EVERY = -2
"""Stands for all other ranks, as the peer of a collective."""


class TorchRequest(Request):
    """A message, or a collective, under way in torch.distributed."""

    def __init__(self, transport: "TorchTransport", work: dist.Work, operation: str, peer: int) -> None:
        self._transport = transport
        self._work = work
        self._operation = operation
        self._peer = peer

    def wait(self) -> int:
        """Waits until the operation is complete, while gloo watches the deadline; returns the peer."""
        try:
            self._work.wait(timedelta(seconds=self._transport.deadline))
        except RuntimeError as error:
            give_way()
            peer = {ANY: "any rank", EVERY: "the other ranks"}.get(self._peer, f"rank {self._peer}")
            what = f"Rank {self._transport.rank} could not {self._operation} {peer}"
            if "imed out" in str(error):
                raise DeadlineError(
                    f"{what} within {self._transport.deadline:g} s. Either that rank is stuck, or it is slow: then "
                    f"allow more with --deadline.{elsewhere()}"
                ) from error
            raise CommunicationError(f"{what}: {str(error).splitlines()[0]}. See what that rank reports.") from error
        return self._work._source_rank() if self._peer == ANY else self._peer

    def when_done(self, call: Callable[[], None]) -> None:
        """Have torch call `call` once the operation is complete, on a thread of its own."""
        self._work.get_future().add_done_callback(lambda _: call())


class TorchTransport(Transport):
    """Moves buffers between all ranks of a torch.distributed process group.

    Args:
        rank: this process's number.
        size: the number of processes.
        meeting: the store at which the processes have met.
        backend: "gloo", "nccl", or both as torch writes it: "cpu:gloo,cuda:nccl".
        deadline: seconds after which a wait gives up.
        launcher: the transport of the job that started the processes, if there is one: it can end them all.

    Attributes:
        nccl: whether NCCL moves what lies on GPUs.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        meeting: Meeting,
        *,
        backend: str = "gloo",
        deadline: float = DEFAULT_DEADLINE,
        launcher: MPITransport | None = None,
    ) -> None:
        super().__init__(rank, size, deadline)
        self._launcher = launcher
        self.nccl = "nccl" in backend
        self._exchanges = 0
        self._store = meeting.store
        timeout = timedelta(seconds=deadline)
        try:
            with _interface(meeting.one_machine):
                dist.init_process_group(backend, rank=rank, world_size=size, store=meeting.store, timeout=timeout)
        except RuntimeError as error:
            between = "" if meeting.one_machine else f", over the network interface that {INTERFACE} can name"
            raise CommunicationError(
                f"Rank {rank} could not join the process group of {size} ranks that met at {meeting.address} within "
                f"{deadline:g} s: {str(error).splitlines()[0]}. Check that every rank can reach the others{between}."
            ) from error

    def exchange(self, text: str) -> list[str | None]:
        """Gives every rank all ranks' texts, by rank, through the store at which the ranks met.

        A message that nobody takes would close gloo's connections.
        """
        self._exchanges += 1
        try:
            return self._exchange(text)
        except dist.DistNetworkError as error:
            give_way()
            raise CommunicationError(
                f"Rank {self.rank} has lost the store at which the ranks met: {str(error).splitlines()[0]}. See what "
                "rank 0 reports, or torchrun, which keeps it."
            ) from error

    def _exchange(self, text: str) -> list[str | None]:
        keys = [f"exchange/{self._exchanges}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], text)
        while True:
            try:
                self._store.wait(keys, timedelta(seconds=self.deadline / 2))
            except dist.DistStoreError:
                if somebody_takes_time():
                    continue
            break  # whose keys are missing is looked at below
        # Everyone has read the one before, or would not have come to this one.
        self._store.delete_key(f"exchange/{self._exchanges - 1}/{self.rank}")
        return [self._store.get(key).decode() if self._store.check([key]) else None for key in keys]

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        work = dist.isend(tensor_of(buffer), target, tag=tag)
        assert work is not None, "every process belongs to the world group"
        return TorchRequest(self, work, "send to", target)

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        work = dist.irecv(tensor_of(buffer), None if source == ANY else source, tag=tag)
        assert work is not None, "every process belongs to the world group"
        return TorchRequest(self, work, "receive from", source)

    def all_reduce(self, tensor: torch.Tensor) -> TorchRequest:
        """Begin torch's own all-reduce (sum) of `tensor`, (elements,), in place.

        torch.distributed does not report what it sends; the record gets the 2((p-1)/p)n bytes of a ring, which
        is the algorithm gloo uses (gloo, `AllreduceOptions`: "ring" unless asked otherwise) and NCCL's least.
        """
        self.count(
            messages=2 * (self.size - 1),
            bytes_=2 * (self.size - 1) * tensor.numel() * tensor.element_size() // self.size,
        )
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None, "asked for an asynchronous operation"
        return TorchRequest(self, work, "all-reduce with", EVERY)

    def all_to_all(self, own: torch.Tensor, arrived: torch.Tensor) -> TorchRequest:
        """Begin torch's own all-to-all: sends each rank its chunk of `own`, (ranks × elements,).

        Args:
            own: the chunks for the ranks, one after the other.
            arrived: where the chunks of all ranks for this one land, by rank.
        """
        self.count(messages=self.size - 1, bytes_=(self.size - 1) * own.nbytes // self.size)
        work = dist.all_to_all_single(arrived.view(torch.uint8), own.view(torch.uint8), async_op=True)
        assert work is not None, "asked for an asynchronous operation"
        return TorchRequest(self, work, "exchange with", EVERY)

    def gather_in_place(self, everyones: torch.Tensor) -> TorchRequest:
        """Begin torch's own all-gather: each rank's chunk of `everyones`, (ranks × elements,), goes to all.

        The record gets the least that any all-gather can send, (p-1)/p·n bytes.
        """
        self.count(messages=self.size - 1, bytes_=(self.size - 1) * everyones.nbytes // self.size)
        bytes_ = everyones.view(torch.uint8)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
        work: dist.Work | None = gather(bytes_, bytes_.view(self.size, -1)[self.rank], async_op=True)
        assert work is not None, "asked for an asynchronous operation"
        return TorchRequest(self, work, "gather with", EVERY)

    def close(self) -> None:
        """Leaves the process group, and closes the launcher's transport if there is one."""
        dist.destroy_process_group()
        if self._launcher is not None:
            self._launcher.close()

    def abort(self, code: int) -> NoReturn:
        """End this process, and with it the job: by the launcher's own means where it has some."""
        if self._launcher is not None:
            self._launcher.abort(code)
        if (watching := watchdog()) is not None:
            watching.end_stopped()  # torchrun would first wait half a minute for them to end by themselves
        os._exit(code)  # a hanging collective must not hold the process back


@contextlib.contextmanager
def _interface(one_machine: bool) -> Iterator[None]:
    """Lets gloo connect ranks of one machine by its loopback interface, unless the user has chosen another.

    Otherwise gloo takes the address that the machine's name resolves to: that of a VPN, or of another machine
    (pytorch 26166).
    """
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if not one_machine or loopback is None or INTERFACE in os.environ:
        yield
        return
    os.environ[INTERFACE] = loopback
    try:
        yield
    finally:
        del os.environ[INTERFACE]
