"""Real jobs that end badly: nothing is left in shared memory, and a second life knows nothing of the first."""

import json
import sys
from pathlib import Path

import pytest
from jobs import Run, launcher

MAPPED = """
import json, os, pathlib, signal, sys, time
from mpi4py import MPI
{connect}
lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
names = sorted({{line.split(None, 5)[5] for line in lines if "/dev/shm/mpich_shm" in line}})
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 0:
    pathlib.Path("names.json").write_text(json.dumps(names))
    time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""Writes what it shares with the other ranks, and ends as if it had been killed."""

START = """
import sys
from bigbatch.experiments.training import launcher
launcher.{how}([launcher.find_mpirun(), "-n", "2", sys.executable, {program!r}])
"""


def names(folder: Path) -> list[str]:
    found: list[str] = json.loads((folder / "names.json").read_text())
    assert found, "MPICH has shared memory by name"
    return found


@pytest.mark.parametrize("how", ["become", pytest.param("start", marks=pytest.mark.slow)])
def test_what_a_job_leaves_is_removed_by_who_started_it(run: Run, tmp_path, how):
    """The ranks are killed before bigbatch has connected them; sirepo 7741 had to remove these files by itself."""
    program = tmp_path / "killed.py"
    program.write_text(MAPPED.format(connect=""))
    outcome = run(sys.executable, "-c", START.format(how=how, program=str(program)), deadline=60)
    assert outcome.status != 0
    assert [name for name in names(tmp_path) if not name.endswith("(deleted)")], "it was there while the job ran"
    assert not [name for name in names(tmp_path) if Path(name).exists()]


@pytest.mark.slow
def test_connected_ranks_share_memory_that_has_no_name_any_more(run: Run, tmp_path):
    program = tmp_path / "killed.py"
    connect = "from bigbatch.comm.transports.mpi import MPITransport\ntransport = MPITransport(2)"
    program.write_text(MAPPED.format(connect=connect))
    outcome = run(*launcher("mpirun", 2), program, deadline=60)
    assert outcome.status != 0
    assert all(name.endswith("(deleted)") for name in names(tmp_path))
    assert not [name for name in names(tmp_path) if Path(name.removesuffix(" (deleted)")).exists()]


LIVES = """
import os, sys
from bigbatch.comm.transports.launch import detect
transport = detect().connect_torch(40)
life = os.environ["TORCHELASTIC_RESTART_COUNT"]
said = transport.exchange(f"life {life} of rank {transport.rank}")
if life == "0":
    os._exit(7 if transport.rank == 1 else 0)
sys.stdout.write(f"{said}\\n")  # at once, since torchrun's ranks print unbuffered, and beside each other
transport.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--standalone"], []], ids=["c10d", "static"])
def test_a_job_that_torchrun_restarts_begins_anew(run: Run, tmp_path, options):
    """pytorch 61590: the second life read the addresses of the first one's ranks."""
    program = tmp_path / "lives.py"
    program.write_text(LIVES)
    words = [*options, "--max-restarts", "1", "--nproc-per-node", "3"]
    outcome = run(sys.executable, "-m", "torch.distributed.run", *words, program, deadline=90)
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines() == [str([f"life 1 of rank {rank}" for rank in range(3)])] * 3
