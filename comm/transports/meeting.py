"""Where the processes of a job meet before torch.distributed connects them: a store that rank 0, or torchrun, serves.

Processes of other jobs, and of an earlier life of this one, may know the same address. So the ranks call the roll:
each writes a word that nobody else knows, and rank 0 lists the words that it finds, beside a name for this meeting.
A rank believes a list that has its own word, since no earlier rank 0 can have written that; and rank 0 waits until
everyone has answered with the name. What torchrun counts, TORCHELASTIC_RESTART_COUNT, is in the name, but cannot be all
of it: each machine counts its own restarts (pytorch 108158, 135712).
"""

import json
import os
import secrets
import socket
import struct
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING

from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # torch's stubs hide them

from bigbatch.comm.errors import CommunicationError, DeadlineError

if TYPE_CHECKING:
    from bigbatch.comm.transports.launch import Launch
    from bigbatch.comm.transports.mpi import MPITransport

INTERFACE = "GLOO_SOCKET_IFNAME"
"""The variable by which users of torch choose the network interface between machines."""

LOOPBACK = "127.0.0.1"

SECONDS_BETWEEN_LOOKS = 0.02
"""Seconds after which a rank looks again whether another has come."""

SECONDS_AT_A_PORT = 3.0
"""Seconds that whoever listens at a port has to answer."""

PORTS = range(20_000, 32_000)
"""Ports where the ranks of a job step may meet; those above are Linux's to give to whoever asks for any."""

PORTS_TRIED = 16
"""Number of ports at which the ranks of a job step look for rank 0, in turn."""


@dataclass(frozen=True)
class Meeting:
    """The store at which the ranks of a job have met.

    Attributes:
        store: the store; its keys are those of this meeting alone.
        address: where it is, for error messages.
        one_machine: whether all ranks are on one machine.
    """

    store: Store
    address: str = ""
    one_machine: bool = True


_opened: dict[tuple[str, int], Store] = {}
"""The stores that a rank serves or has reached, by what they are called and by rank: it can meet the others again."""


def nobody() -> Meeting:
    """The meeting of a single rank."""
    return Meeting(HashStore())


def at_address(launch: "Launch", deadline: float) -> Meeting:
    """Meets the other ranks at the address that the launcher gives; torchrun itself may serve the store there.

    Args:
        launch: how this process was started.
        deadline: seconds after which a wait gives up.

    Raises:
        CommunicationError: the address cannot be reached, or a rank does not come.
    """
    host, _, port = launch.address.rpartition(":")
    # torchrun's agent already listens there; its workers all connect.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = launch.rank == 0 and not agent
    if serves or (launch.one_machine and _is_here(host)):
        host = LOOPBACK
    own = (launch.address, launch.rank)
    if own not in _opened:
        try:
            if serves:
                socket.create_server(("", int(port))).close()  # torch would fail with pages about it
            _opened[own] = _store(host, int(port), deadline, serves=serves)
        except OSError as error:
            raise CommunicationError(
                f"Rank 0 cannot listen at {launch.address}: {error.strerror}. End what listens there, or take another "
                "MASTER_PORT on every rank."
            ) from error
        except RuntimeError as error:
            raise _unreached(launch, launch.address, deadline, error) from error
    store = PrefixStore(f"bigbatch/{launch.job}/{launch.size}", _opened[own])
    return _called(store, launch, launch.address, deadline)


def in_step(launch: "Launch", deadline: float) -> Meeting:
    """Meets the other ranks of a job step of Slurm, which gives them the host of rank 0, but no port.

    Rank 0 answers at the first free port of a few that follow from the names of the job and the step, and says where
    its store is, for which the system chooses the port. The others ask at each of these ports, until they are told the
    name of their own job, step and attempt: nobody else says that.

    Args:
        launch: how this process was started.
        deadline: seconds after which a wait gives up.

    Raises:
        CommunicationError: no port is free, or a rank does not come.
    """
    ports = [PORTS[zlib.crc32(f"{launch.job}/{turn}".encode()) % len(PORTS)] for turn in range(PORTS_TRIED)]
    host = LOOPBACK if launch.one_machine or launch.rank == 0 else launch.address
    own, where = (launch.job, launch.rank), f"{launch.address} (job step {launch.job})"
    signpost = None
    if own not in _opened and launch.rank == 0:
        store = TCPStore(LOOPBACK, 0, None, True, timedelta(seconds=deadline), wait_for_workers=False)
        signpost = Signpost(ports, launch.job, store.port)
        _opened[own] = store
    elif own not in _opened:
        port = _asked(host, ports, launch, deadline)
        try:
            _opened[own] = _store(host, port, deadline, serves=False)
        except RuntimeError as error:
            raise _unreached(launch, f"{host}:{port}", deadline, error) from error
    try:
        return _called(PrefixStore(f"bigbatch/{launch.job}", _opened[own]), launch, where, deadline)
    finally:
        if signpost is not None:
            signpost.close()


def through_mpi(mpi: "MPITransport", deadline: float) -> Meeting:
    """Meets the other ranks at a free port of rank 0, which MPI tells them; the system chooses the port.

    Args:
        mpi: the transport that connects the ranks already.
        deadline: seconds after which a wait gives up.

    Raises:
        CommunicationError: rank 0's address cannot be reached.
    """
    one_machine = len(mpi.nodes) == 1
    store, address = None, ""
    if mpi.rank == 0:
        store = TCPStore(LOOPBACK, 0, None, True, timedelta(seconds=deadline), wait_for_workers=False)
        address = f"{LOOPBACK if one_machine else own_address()}:{store.port}"
    address = mpi.share_address(address)
    host, _, port = address.rpartition(":")
    try:
        return Meeting(store or _store(host, int(port), deadline, serves=False), address, one_machine)
    except RuntimeError as error:
        raise CommunicationError(
            f"Rank {mpi.rank} could not reach rank 0 at {address} within {deadline:g} s: {_first_line(error)}. Set "
            f"{INTERFACE} on every machine to the network interface between them."
        ) from error


def own_address() -> str:
    """The address of this machine for others: that of the interface that the user chose, else its name."""
    if interface := os.environ.get(INTERFACE):
        return interface_address(interface)
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return LOOPBACK
    return host


def interface_address(interface: str) -> str:
    """Asks Linux for the IPv4 address of a network interface, such as "eth0".

    Raises:
        CommunicationError: there is no such interface, or it has no address.
    """
    import fcntl

    request, first, last = 0x8915, 20, 24  # SIOCGIFADDR of netdevice(7): the name goes in, the address comes out
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            return socket.inet_ntoa(
                fcntl.ioctl(asking, request, struct.pack("256s", interface.encode()[:15]))[first:last]
            )
    except OSError as error:
        known = ", ".join(name for _, name in socket.if_nameindex())
        raise CommunicationError(
            f"{INTERFACE}={interface} names no network interface that has an address here ({error.strerror}). Known "
            f"are {known}."
        ) from error


def _unreached(launch: "Launch", address: str, deadline: float, error: Exception) -> CommunicationError:
    return CommunicationError(
        f"Rank {launch.rank} could not meet the other {launch.size - 1} ranks at {address} within {deadline:g} s: "
        f"{_first_line(error)}. Check that rank 0 was started there, and that every rank can reach that address."
    )


def _is_here(host: str) -> bool:
    """Whether a host's name is one of this machine, whatever address it resolves to."""
    name = socket.gethostname()
    return host in ("localhost", name, name.split(".")[0], socket.getfqdn())


def _store(host: str, port: int, deadline: float, *, serves: bool) -> Store:
    """Serves a store, or reaches one.

    Raises:
        RuntimeError: torch's error, or that nobody listens there, or whoever does not answer.
    """
    if not serves:
        _wait_for_listener(host, port, deadline)
    made: Future[Store] = Future()

    def make() -> None:
        try:
            made.set_result(TCPStore(host, port, None, serves, timedelta(seconds=deadline), wait_for_workers=False))
        except RuntimeError as error:
            made.set_exception(error)

    Thread(target=make, daemon=True).start()  # torch itself would wait for ever
    try:
        return made.result(deadline + SECONDS_AT_A_PORT)
    except TimeoutError:
        raise RuntimeError("whoever listens there does not answer as a store does") from None


def _wait_for_listener(host: str, port: int, deadline: float) -> None:
    """Waits until somebody listens, without the pages that torch prints while it waits."""
    end = time.monotonic() + deadline
    while True:
        try:
            socket.create_connection((host, port), max(end - time.monotonic(), SECONDS_BETWEEN_LOOKS)).close()
        except OSError as error:
            if time.monotonic() > end:
                raise RuntimeError(error.strerror or str(error)) from error
            time.sleep(SECONDS_BETWEEN_LOOKS)
        else:
            return


class Signpost:
    """Tells whoever asks at a port, the first free one of several, which job is here and where its store is.

    Args:
        ports: the ports to try.
        job: the name of the job.
        store: the port of the job's store.
    """

    def __init__(self, ports: Sequence[int], job: str, store: int) -> None:
        self._told = f"bigbatch {job} {store}\n".encode()
        self._socket = _first_free(ports, job)
        self._thread = Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        while True:
            try:
                asking, _ = self._socket.accept()
            except OSError:  # closed
                return
            with asking, suppress(OSError):  # it has gone away
                asking.sendall(self._told)

    def close(self) -> None:
        """Stops answering at the port, which others may then use."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def _first_free(ports: Sequence[int], job: str) -> socket.socket:
    for port in ports:
        with suppress(OSError):  # somebody else's
            return socket.create_server(("", port))
    raise CommunicationError(
        f"Rank 0 of the job step {job} found none of the ports {_written(ports)} free: end what listens there."
    )


def _asked(host: str, ports: Sequence[int], launch: "Launch", deadline: float) -> int:
    """Asks at each port, until rank 0 of this job answers; returns the port of its store."""
    end = time.monotonic() + deadline
    expected = f"bigbatch {launch.job} "
    while time.monotonic() < end:
        for port in ports:
            with suppress(OSError, ValueError), socket.create_connection((host, port), SECONDS_AT_A_PORT) as asking:
                told = asking.makefile(encoding="ascii").readline(200)
                if told.startswith(expected):
                    return int(told.removeprefix(expected))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    raise DeadlineError(
        f"Rank {launch.rank} looked {deadline:g} s for rank 0 of the job step {launch.job} on {host}, at the ports "
        f"{_written(ports)}. Check that rank 0 was started and that these ports can be reached, or allow more with "
        "--deadline."
    )


def _written(ports: Sequence[int]) -> str:
    return ", ".join(map(str, dict.fromkeys(ports)))


def _called(store: Store, launch: "Launch", address: str, deadline: float) -> Meeting:
    """Calls the roll of all ranks; returns the meeting of those who were found now, and not in an earlier life."""
    call = _gathered if launch.rank == 0 else _listed
    try:
        name = call(store, launch, address, deadline)
    except RuntimeError as error:
        raise CommunicationError(
            f"Rank {launch.rank} lost the store at {address} where the ranks meet: {_first_line(error)}. See what rank "
            "0 or its launcher reports."
        ) from error
    return Meeting(PrefixStore(name, store), address, launch.one_machine)


def _gathered(store: Store, launch: "Launch", address: str, deadline: float) -> str:
    """Rank 0's part of the roll call: lists the words of all ranks until each has answered; returns the name."""
    end = time.monotonic() + deadline
    name = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}, {secrets.token_hex(8)}"
    words: dict[int, str] = {}
    missing = set(range(1, launch.size))
    while missing:
        found = {rank: word for rank in missing if (word := _read(store, f"word/{rank}")) is not None}
        if not found.items() <= words.items():
            words |= found
            store.set("roll", json.dumps({"name": name, "words": words}))
        missing = {rank for rank in missing if _read(store, f"answer/{rank}") != name}
        if missing and time.monotonic() > end:
            late = ", ".join(map(str, sorted(missing)[:8])) + (", ..." if len(missing) > 8 else "")
            raise DeadlineError(
                f"Rank 0 waited {deadline:g} s at {address} for {'ranks' if len(missing) > 1 else 'rank'} {late} to "
                "come. Check that every rank was started and can reach that address, or allow more with --deadline."
            )
        time.sleep(SECONDS_BETWEEN_LOOKS if missing else 0)
    return name


def _listed(store: Store, launch: "Launch", address: str, deadline: float) -> str:
    """Another rank's part: waits for a list that has this rank's own word, and answers; returns the list's name."""
    end = time.monotonic() + deadline
    word, place = secrets.token_hex(8), str(launch.rank)
    store.set(f"word/{place}", word)
    while time.monotonic() < end:
        roll = json.loads(_read(store, "roll") or "{}")
        if roll.get("words", {}).get(place) == word:
            name = str(roll["name"])
            store.set(f"answer/{place}", name)
            return name
        time.sleep(SECONDS_BETWEEN_LOOKS)
    raise DeadlineError(
        f"Rank {launch.rank} waited {deadline:g} s at {address} for rank 0 to come. Check that rank 0 was started, and "
        "no other job meets there, or allow more with --deadline."
    )


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
