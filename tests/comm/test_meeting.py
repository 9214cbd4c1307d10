"""Where ranks meet before torch.distributed connects them: apart from other jobs, and from earlier lives of theirs."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from bigbatch.comm.errors import CommunicationError, DeadlineError
from bigbatch.comm.transports import meeting
from bigbatch.comm.transports.families import Launcher
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.transports.meeting import INTERFACE, Meeting, at_address, in_step, own_address
from bigbatch.comm.transports.torch_distributed import _interface

SOON = 20.0


@pytest.fixture(autouse=True)
def nothing_opened(monkeypatch):
    monkeypatch.setattr(meeting, "_opened", {})
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ranks(size: int, address: str, **about: object) -> list[Launch]:
    return [Launch(Launcher.TORCHRUN, rank, size, rank, size, address, **about) for rank in range(size)]


def together(launches: list[Launch], meet: Callable[[Launch, float], Meeting], deadline: float = SOON) -> list[Meeting]:
    """All ranks meet, each in a thread of its own, the last first."""
    with ThreadPoolExecutor(len(launches)) as pool:
        met: list[Future[Meeting]] = []
        for launch in reversed(launches):
            met.append(pool.submit(meet, launch, deadline))
            time.sleep(0.02)
        return [one.result() for one in reversed(met)]


def test_all_ranks_meet_and_share_one_store():
    met = together(ranks(3, f"127.0.0.1:{free_port()}"), at_address)
    met[1].store.set("key", "value")
    assert met[2].store.get("key") == met[0].store.get("key") == b"value"


def test_ranks_that_meet_again_share_no_keys_with_before():
    launches = ranks(2, f"127.0.0.1:{free_port()}")
    first = together(launches, at_address)
    first[0].store.set("key", "old")
    again = together(launches, at_address)
    assert not again[1].store.check(["key"])
    again[0].store.set("key", "new")
    assert (first[1].store.get("key"), again[1].store.get("key")) == (b"old", b"new")


def test_a_second_life_reads_nothing_of_the_first(monkeypatch):
    """torchrun's own store outlives its workers (pytorch 61590); each machine counts its own restarts (108158)."""
    port = free_port()
    agent = TCPStore("127.0.0.1", port, None, True, timedelta(seconds=SOON), wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    launches = ranks(3, f"127.0.0.1:{port}", job="0f21")
    first = together(launches, at_address)
    first[0].store.set("address of rank 0", "dead")

    monkeypatch.setattr(meeting, "_opened", {})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(at_address, launch, SOON) for launch in launches[1:]]
        time.sleep(0.3)
        assert not any(other.done() for other in others), "they must not believe the first life's list"
        own = pool.submit(at_address, launches[0], SOON).result()
        second = [own, *(other.result() for other in others)]
    assert not any(one.store.check(["address of rank 0"]) for one in second)
    second[0].store.set("address of rank 0", "alive")
    assert second[2].store.get("address of rank 0") == b"alive"
    del agent


def test_ranks_that_do_not_come_are_named_within_the_deadline():
    launches = ranks(4, f"127.0.0.1:{free_port()}")
    with ThreadPoolExecutor(2) as pool:
        first, third = (pool.submit(at_address, launches[rank], 1.0) for rank in (0, 2))
        with pytest.raises(DeadlineError, match=r"Rank 0 waited 1 s at 127.0.0.1:\d+ for ranks 1, 3 to come"):
            first.result(SOON)
        assert third.result(SOON).store is not None, "this one had heard of rank 0"


def test_a_rank_whose_rank_0_never_came_says_so_within_the_deadline():
    began = time.monotonic()
    with pytest.raises(CommunicationError, match=r"Rank 1 could not meet the other 2 .* Connection refused"):
        at_address(ranks(3, f"127.0.0.1:{free_port()}")[1], 1.0)
    assert time.monotonic() - began < SOON


def test_ranks_on_one_machine_meet_by_loopback_whatever_its_name_says(monkeypatch):
    """pytorch 26166: the machine's name resolves to the address of a VPN, or of another machine."""
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.example")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: "laptop.example")
    met = together(ranks(2, f"laptop.example:{free_port()}", one_machine=True), at_address, 5.0)
    assert met[0].one_machine
    met[0].store.set("key", "value")
    assert met[1].store.get("key") == b"value"


def test_a_stranger_who_listens_at_the_address_and_says_nothing_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(meeting, "SECONDS_AT_A_PORT", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        with pytest.raises(CommunicationError, match=f"Rank 1 could not meet .* at {address} .*does not answer"):
            at_address(ranks(2, address)[1], 0.5)


def test_rank_0_says_that_somebody_else_listens_at_its_port(capfd):
    with closing(socket.create_server(("", 0))) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        with pytest.raises(CommunicationError, match=f"Rank 0 cannot listen at {address}: Address already in use"):
            at_address(ranks(2, address)[0], 0.5)
    # Torch may still say something about a store of an earlier test, from a thread of its own.
    assert address.rpartition(":")[2] not in capfd.readouterr().err


def steps(job: str, size: int = 2) -> list[Launch]:
    return [Launch(Launcher.SLURM, rank, size, rank, size, "n07", one_machine=True, job=job) for rank in range(size)]


def test_steps_side_by_side_on_one_machine_do_not_meet_each_other(monkeypatch):
    """enroot 243: two steps of one job at the same port. Here there are hardly more ports than jobs."""
    monkeypatch.setattr(meeting, "PORTS", range(21_000, 21_004))
    monkeypatch.setattr(meeting, "PORTS_TRIED", 64)
    monkeypatch.setattr(meeting, "SECONDS_AT_A_PORT", 0.5)
    jobs = ("7.0.0", "7.1.0", "7.1.1")
    with ThreadPoolExecutor(len(jobs)) as pool:
        met = list(pool.map(lambda job: together(steps(job), in_step), jobs))
    for job, (first, _) in zip(jobs, met, strict=True):
        first.store.set("job", job)
    assert [second.store.get("job").decode() for _, second in met] == list(jobs)


def test_a_step_passes_by_a_port_where_a_stranger_listens_and_says_nothing(monkeypatch):
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setattr(meeting, "PORTS", [port, free_port()])
        monkeypatch.setattr(meeting, "SECONDS_AT_A_PORT", 0.3)
        met = together(steps("8.0.0"), in_step)
    met[0].store.set("key", "value")
    assert met[1].store.get("key") == b"value"


def test_a_step_without_a_free_port_says_which_were_tried(monkeypatch):
    with closing(socket.create_server(("", 0))) as stranger:
        monkeypatch.setattr(meeting, "PORTS", [stranger.getsockname()[1]])
        with pytest.raises(CommunicationError, match=f"found none of the ports {stranger.getsockname()[1]} free"):
            in_step(steps("9.0.0")[0], 1.0)


def test_a_step_whose_rank_0_never_came_says_so(monkeypatch):
    monkeypatch.setattr(meeting, "PORTS", [free_port()])
    with pytest.raises(DeadlineError, match=r"Rank 1 looked 0.5 s for rank 0 of the job step 9.1.0 on 127.0.0.1"):
        in_step(steps("9.1.0")[1], 0.5)


def test_gloo_takes_the_loopback_interface_on_one_machine_unless_the_user_chose_another(monkeypatch):
    monkeypatch.delenv(INTERFACE, raising=False)
    with _interface(one_machine=True):
        assert os.environ[INTERFACE].startswith("lo")
    with _interface(one_machine=False):
        assert INTERFACE not in os.environ
    monkeypatch.setenv(INTERFACE, "eth7")
    with _interface(one_machine=True):
        assert os.environ[INTERFACE] == "eth7"
    assert os.environ[INTERFACE] == "eth7"


def test_the_address_for_other_machines_is_that_of_the_chosen_interface(monkeypatch):
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    monkeypatch.setenv(INTERFACE, loopback)
    assert own_address() == "127.0.0.1"
    monkeypatch.setenv(INTERFACE, "eth77")
    with pytest.raises(CommunicationError, match=f"GLOO_SOCKET_IFNAME=eth77 names no .*Known are .*{loopback}"):
        own_address()
