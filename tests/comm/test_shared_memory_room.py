"""Shared memory that is too small is refused beforehand: pmodels/mpich 4631, SIGBUS with Docker's 64 MB."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.transports import mpi
from bigbatch.comm.transports.mpi import MPICH_RANKS_HERE, ROOM_PER_RANK, SHARED_MEMORY, check_room, check_room_to_start

MB = 2**20


def test_windows_need_room_on_every_machine():
    check_room([("a", 8 * MB, 64 * MB)] * 4)
    check_room([("a", 32 * MB, None)] * 4)  # nobody knows
    check_room([("a", 30 * MB, 33 * MB), ("b", 30 * MB, 33 * MB)])
    exactly = 2 * (10 * MB + ROOM_PER_RANK)
    check_room([("a", 10 * MB, exactly)] * 2)
    with pytest.raises(ConfigurationError) as refused:
        check_room([("a", 32 * MB, 1 << 40), *[("docker", 32 * MB, 43 * MB)] * 4])
    assert refused.value.everywhere
    assert str(refused.value).startswith(
        f"{SHARED_MEMORY} on docker has 43 MB free, and 4 ranks need 132 MB of shared memory: give it more (docker run "
        "--shm-size=512m)"
    )
    with pytest.raises(ConfigurationError):
        check_room([("a", 10 * MB, exactly - 1)] * 2)


def test_mpich_needs_room_to_start(monkeypatch):
    monkeypatch.setattr(mpi.os, "statvfs", lambda _: SimpleNamespace(f_blocks=64 * 256, f_frsize=4096))
    for ranks in ("", "2", "12"):
        monkeypatch.setenv(MPICH_RANKS_HERE, ranks)
        check_room_to_start()
    monkeypatch.setenv(MPICH_RANKS_HERE, "16")
    with pytest.raises(LaunchError, match=r"has 64 MB, and MPICH takes 83 MB .* 16 ranks.*--shm-size=256m"):
        check_room_to_start()


def in_a_container(megabytes: int, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command that sees a /dev/shm of its own, as in a container."""
    unshared = [
        "unshare",
        "-m",
        "bash",
        "-c",
        f'mount -t tmpfs -o size={megabytes}m tmpfs {SHARED_MEMORY} && exec "$@"',
    ]
    words = [*unshared, "bash", *command]
    if shutil.which("unshare") is None or subprocess.run([*unshared, "bash", "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here; it takes root on Linux")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        words,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_bench_in_a_small_container_keeps_its_rows_and_says_what_it_takes(tmp_path):
    program = [sys.executable, "-m", "bigbatch.experiments", "bench", "-n", "4", "--algorithms", "ring,shared"]
    outcome = in_a_container(64, [*program, "--seconds", "0.2", "--bytes", "4KB,32MB", "--out", "here"], tmp_path)
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stderr.count("--shm-size") == 1
    assert "and 4 ranks need 132 MB of shared memory" in outcome.stderr
    assert "4 KB" in outcome.stdout
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert {(row["algorithm"], row["bytes"]) for row in summary["rows"]} == {("ring", 4096), ("shared", 4096)}


@pytest.mark.slow
def test_too_many_ranks_for_a_small_container_are_refused(tmp_path):
    program = [sys.executable, "-m", "bigbatch.experiments", "bench", "-n", "4", "--bytes", "4KB", "--out", "here"]
    outcome = in_a_container(16, program, tmp_path)
    assert outcome.returncode == 2, outcome.stderr
    assert "has 16 MB, and MPICH takes 21 MB of shared memory to start 4 ranks" in outcome.stderr
