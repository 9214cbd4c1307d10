"""torch.distributed: gloo between processors, NCCL between GPUs."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # torch's stubs hide them

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.errors import CommunicationError, DeadlineError
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
        address: where rank 0 listens, as "host:port"; unused by a single rank.
        backend: "gloo", "nccl", or both as torch writes it: "cpu:gloo,cuda:nccl".
        deadline: seconds after which a wait gives up.
        launcher: the transport of the job that started the processes, if there is one: it can end them all.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        address: str,
        *,
        backend: str = "gloo",
        deadline: float = DEFAULT_DEADLINE,
        launcher: MPITransport | None = None,
    ) -> None:
        super().__init__(rank, size, deadline)
        self._launcher = launcher
        self._exchanges = 0
        timeout = timedelta(seconds=deadline)
        store: Store
        try:
            if size == 1:
                store = HashStore()
            else:
                host, _, port = address.rpartition(":")
                # torchrun's agent already listens there; its workers all connect.
                agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
                store = TCPStore(host, int(port), world_size=size, is_master=rank == 0 and not agent, timeout=timeout)
            # One process can join several groups, one after the other, that meet at the same address.
            self._store = PrefixStore(f"bigbatch/{next(_groups)}", store)
            dist.init_process_group(backend, rank=rank, world_size=size, store=self._store, timeout=timeout)
        except RuntimeError as error:
            raise CommunicationError(
                f"Rank {rank} could not join the process group of {size} ranks at {address} within {deadline:g} s: "
                f"{str(error).splitlines()[0]}. Check that every rank was started and can reach that address."
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
        work = dist.isend(torch.from_numpy(buffer), target, tag=tag)
        assert work is not None, "every process belongs to the world group"
        return TorchRequest(self, work, "send to", target)

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        work = dist.irecv(torch.from_numpy(buffer), None if source == ANY else source, tag=tag)
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


_groups = count(1)


def free_address() -> str:
    """An address on this machine where nobody listens yet, as "host:port"."""
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        host = "127.0.0.1"
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"
