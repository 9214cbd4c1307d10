"""What MPI's processes leave in shared memory: removed where nobody uses it, and only the job's own or this user's."""

import mmap
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from bigbatch.comm.transports import segments
from bigbatch.comm.transports.segments import forget_own, orphans, remove, tidy_after, users

NAMED_BY_MPI = (
    "mpich_shm_1070f279_0",  # MPICH 5; sirepo 7741
    "mpich_vci_1070f279_0",
    "mpich_shar_tmphISUik",  # MPICH 4
    "vader_segment.xf03id-srv5.73dc0001.2",  # ompi 6322
    "sm_segment.node1.1000.5a0001.3",  # ompi 10040
    "open_mpi.0003",  # ompi 7394
)
NOT_MPIS = ("sem.mp-10n8mtv4", "psm_1a2b3c", "torch_123_456", "mpich_shm_notes.txt", "pulse-shm-1", "my_open_mpi.0001")

HOLDER = """
import mmap, sys
with open(sys.argv[1], "w+b") as file:
    file.write(bytes(4096)); file.flush()
    shared = mmap.mmap(file.fileno(), 4096)
print("there", flush=True)
sys.stdin.read()
"""
"""Makes a file, maps it, closes it, and waits."""


@pytest.fixture(autouse=True)
def shared(monkeypatch, tmp_path) -> Path:
    """A folder in the place of /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(segments, "SHARED", folder)
    return folder


def holder(path: Path, **environment: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", HOLDER, str(path)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def kill(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_files_of_mpi_libraries_that_nobody_uses_are_orphans(shared):
    for name in (*NAMED_BY_MPI, *NOT_MPIS):
        (shared / name).write_bytes(b"x")
    assert {path.name for path in orphans()} == set(NAMED_BY_MPI)
    assert len(remove([*orphans(), shared / "gone"])) == len(NAMED_BY_MPI)
    assert {path.name for path in shared.iterdir()} == set(NOT_MPIS)


def test_what_a_living_process_has_open_or_mapped_is_left(shared):
    opened, mapped, left = (shared / f"mpich_shm_{name}_0" for name in ("a", "b", "c"))
    for path in (opened, mapped, left):
        path.write_bytes(bytes(4096))
    with opened.open() as held, mapped.open("r+b") as file:
        view = mmap.mmap(file.fileno(), 4096)
        file.close()
        assert orphans() == [left]
        assert users([opened, mapped, left]) == {opened: [os.getpid()], mapped: [os.getpid()], left: []}
        view.close()
        assert held.readable()
    assert orphans() == [opened, mapped, left]


def test_another_process_that_holds_it_counts_and_its_death_frees_it(shared):
    path = shared / "sm_segment.n.0.1.0"
    process = holder(path)
    try:
        assert orphans() == []
    finally:
        kill(process)
    assert orphans() == [path]


def test_another_users_files_are_not_touched(shared, monkeypatch):
    (shared / "mpich_shm_1_0").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert orphans() == []


def test_a_link_by_such_a_name_and_a_missing_folder_do_no_harm(shared, monkeypatch, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (shared / "mpich_shm_2_0").symlink_to(tmp_path / "precious")
    remove(orphans())
    assert (tmp_path / "precious").read_text() == "mine"
    monkeypatch.setattr(segments, "SHARED", tmp_path / "nowhere")
    assert orphans() == []


def test_a_process_forgets_the_names_of_the_memory_that_it_shares(shared):
    own, others, kept = shared / "mpich_shm_aa_0", shared / "mpich_shm_bb_0", shared / "mpich_vci_aa_0"
    for path in (own, others, kept):
        path.write_bytes(bytes(4096))
    with own.open("r+b") as file, kept.open("r+b") as second:
        views = [mmap.mmap(one.fileno(), 4096) for one in (file, second)]
    forget_own()
    assert sorted(path.name for path in shared.iterdir()) == ["mpich_shm_bb_0", "mpich_vci_aa_0"]
    views[0][0] = 7  # the memory is there as before
    assert views[0][0] == 7
    for view in views:
        view.close()


def test_after_a_job_only_its_own_files_are_removed_and_not_before_its_last_process_has_ended(shared):
    before, others, own = shared / "mpich_shm_0_0", shared / "mpich_shm_1_0", shared / "mpich_shm_2_0"
    before.touch()
    launcher = subprocess.Popen(["sleep", "60"])
    tidying = Thread(target=tidy_after, args=(launcher.pid, "this"))
    tidying.start()
    ranks = [holder(others, **{segments.MARK: "another"}), holder(own, **{segments.MARK: "this"})]
    try:
        tidying.join(0.5)
        kill(ranks[0])  # another job is aborted meanwhile
        launcher.kill()
        launcher.wait()
        tidying.join(0.5)
        assert own.exists(), "its last process still runs"
        assert tidying.is_alive()
    finally:
        kill(*ranks)
    tidying.join(20)
    assert not tidying.is_alive()
    assert {path.name for path in shared.iterdir()} == {before.name, others.name}


def test_a_job_that_is_over_before_anybody_looks_is_no_error():
    done = subprocess.Popen(["true"])
    done.wait()
    tidy_after(done.pid, "mark")
