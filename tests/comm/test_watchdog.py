"""Ranks that are stopped, and ranks whose launcher is gone: the job ends, one rank says why, and nobody is left.

Others met the same: horovod 2107 (one rank falls silent, and the others wait for days), horovod 2315 (a rank that only
takes long is taken for one that hangs), open-mpi/ompi 1418 (ranks go on when their daemon was killed), and
clemsgrs/slide2vec 131 (so do those of torchrun).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from jobs import PROGRAMS, Job, Start, launcher, quick, slowdown, until

from bigbatch.comm.transports.families import Launcher
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.transports.waits import wait_until
from bigbatch.comm.transports.watchdog import SECONDS_BEFORE_NOTICE, STARTED_BY, Watchdog, launcher_of, watchdog
from bigbatch.comm.wires import life
from bigbatch.comm.wires.life import Board, Sign, doing, elsewhere, somebody_takes_time
from bigbatch.comm.wires.processes import PROC, Process, below

WATCHED = [sys.executable, PROGRAMS / "small_launcher.py"]


def watched(start: Start, ranks: int, *words: object, **environment: str) -> Job:
    """Ranks of a small launcher, once all of them are in their phase."""
    job = start(*WATCHED, ranks, PROGRAMS / "watched.py", *words, **environment)
    expected = ranks - 1 if words[0] == "loading" else ranks
    until(lambda: job.out().count(str(words[0])) == expected)
    return job


def test_mpiruns_proxy_takes_its_ranks_and_mpirun_along(start: Start):
    """mpirun itself waits without end for a proxy that was killed."""
    job = start(*launcher("mpirun", 2), PROGRAMS / "watched.py", "training", 300)
    until(lambda: job.out().count("training") == 2)
    proxy = next(number for number in job.alive() if "hydra_pmi" in (PROC / str(number) / "comm").read_text())
    os.kill(proxy, signal.SIGKILL)
    assert job.gone(5), job.alive()  # what the ranks say is lost with the proxy, through which they say it
    assert job.process.wait(5) != 0


@pytest.mark.parametrize("what", quick(["stopped", "killed"], lambda which: which == "stopped"))
def test_under_torchrun(start: Start, what):
    """torchrun asks nicely, and waits half a minute: a stopped rank held up its end for 62 s."""
    job = start(*launcher("torchrun", 2), PROGRAMS / "watched.py", "training", 3)
    until(lambda: job.out().count("training") == 2)
    if what == "killed":
        os.kill(job.process.pid, signal.SIGKILL)
        assert job.gone(5)
        assert job.err().count("ends because torchrun has ended") == 1
        return
    os.kill(process_of(job, 1), signal.SIGSTOP)
    began = time.monotonic()
    assert job.wait(15).status != 0
    assert time.monotonic() - began < 8 * slowdown()
    assert job.gone(5)
    assert job.err().count("Rank 1 has given no sign of life for 3 s") == 1


def process_of(job: Job, rank: int) -> int:
    return next(number for number, its in job.alive().items() if its == str(rank))


@pytest.mark.parametrize("rank", quick([0, 2], lambda rank: rank == 0))
def test_a_stopped_rank_ends_the_job_at_its_deadline(start: Start, rank):
    job = watched(start, 3, "preparing the text", 2)
    process = process_of(job, rank)
    os.kill(process, signal.SIGSTOP)
    outcome = job.wait(10)
    assert outcome.status != 0
    assert outcome.err.splitlines() == [
        f"bigbatch: Rank {rank} has given no sign of life for 2 s: it was stopped while it was preparing the text "
        f"(process {process}). So the job has been ended: see what holds that process, or allow more with --deadline."
    ]
    assert job.gone(5)


def test_a_rank_that_is_stopped_before_it_has_loaded_anything_is_found(start: Start):
    job = watched(start, 3, "loading", 2)
    outcome = job.wait(10)
    assert outcome.status != 0
    assert outcome.err.count("Rank 1 has given no sign of life for 2 s: it was stopped while it was loading") == 1
    assert job.gone(5)


@pytest.mark.slow
def test_a_rank_that_is_started_through_a_shell_is_watched(start: Start, tmp_path):
    through = tmp_path / "through.py"
    program = [sys.executable, str(PROGRAMS / "watched.py"), "training", "2"]
    through.write_text(f"import subprocess, sys\nsys.exit(subprocess.call({program!r}))")
    job = start(*WATCHED, 2, through)
    until(lambda: job.out().count("training") == 2)
    stopped = next(number for number, rank in job.alive().items() if rank == "1" and below_itself(number))
    os.kill(stopped, signal.SIGSTOP)
    outcome = job.wait(10)
    assert outcome.status != 0
    assert outcome.err.count("Rank 1 has given no sign of life for 2 s") == 1
    assert job.gone(5)


def below_itself(number: int) -> bool:
    process = Process.numbered(number)
    return process is not None and not below(process)


@pytest.mark.slow
def test_a_job_that_was_stopped_as_a_whole_goes_on(start: Start):
    """Ctrl-Z and fg, or a lid that is closed: nobody was awake to see anybody silent."""
    job = watched(start, 3, "training", 2, 8)
    ranks = [number for number, rank in job.alive().items() if rank != "-"]
    for number in ranks:
        os.kill(number, signal.SIGSTOP)
    time.sleep(4)
    for number in ranks:
        os.kill(number, signal.SIGCONT)
    outcome = job.wait(20)
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.slow
def test_a_rank_that_is_stopped_for_less_than_the_deadline_goes_on(start: Start):
    job = watched(start, 2, "training", 4, 4)
    number = process_of(job, 1)
    os.kill(number, signal.SIGSTOP)
    time.sleep(2)
    os.kill(number, signal.SIGCONT)
    outcome = job.wait(20)
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.slow
def test_a_rank_that_computes_and_lets_no_other_thread_work_lives(start: Start):
    outcome = watched(start, 2, "holding on", 2, 5).wait(20)
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.slow
def test_a_rank_that_fails_is_left_to_the_launcher(start: Start):
    """It does not wait for the others, who may wait for it."""
    job = watched(start, 2, "failing", 2, 3)
    until(lambda: "1" not in job.alive().values())
    assert job.wait(20).status == 3
    assert job.err() == ""


def test_ranks_end_with_their_launcher(start: Start):
    job = watched(start, 3, "training", 300)
    os.kill(job.process.pid, signal.SIGKILL)
    assert job.gone(5)
    assert job.err().count("ends because mpirun has ended") == 1


@pytest.mark.slow
def test_ranks_end_with_the_program_that_started_their_launcher(start: Start):
    """A notebook's kernel that is killed, or `compare`: mpirun itself would go on."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as program:
        process = Process.numbered(program.pid)
        assert process is not None
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        job = watched(start, 2, "training", 300, **{STARTED_BY: f"{machine} {process.number} {process.started}"})
        program.kill()
    assert job.gone(5)
    assert job.err().count("ends because the program that started it has ended") == 1


BY_HAND = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
LEFT_OVER = {"PMI_RANK": "0", "PMI_SIZE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("variables", [BY_HAND, LEFT_OVER])
def test_whoever_is_no_launcher_may_leave(start: Start, variables):
    """RANK=0 WORLD_SIZE=2 ... nohup python own_loop.py &, and the shell is closed."""
    program = [sys.executable, str(PROGRAMS / "watched.py"), "training", "1", "3"]
    leaves = f"import subprocess\nsubprocess.Popen({program!r})"
    job = start(sys.executable, "-c", leaves, **variables)
    assert job.wait(10).status == 0
    until(job.alive)
    time.sleep(2)
    assert len(job.alive()) == 1
    assert job.gone(20)
    assert job.err() == ""


class EndedError(Exception):
    """What a process does instead of ending, to be looked at."""


@pytest.fixture
def sleeper() -> Iterator[Process]:
    """Another rank's process."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as program:
        process = Process.numbered(program.pid)
        assert process is not None
        yield process
        program.kill()


@pytest.fixture
def boards(tmp_path, monkeypatch) -> tuple[Board, Board]:
    """Those of ranks 0 and 1 of a job."""
    monkeypatch.setattr(life, "_root", lambda: tmp_path)
    monkeypatch.setattr(life, "_station", life._Station())
    launcher = Process.numbered(os.getppid())
    assert launcher is not None
    return Board(launcher, "first", 0), Board(launcher, "first", 1)


@pytest.fixture
def watching(boards, monkeypatch) -> Watchdog:
    def end(_: int) -> None:
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    launch = Launch(Launcher.MPI, rank=0, size=2, local_rank=0, local_size=2)
    launcher = Process.numbered(os.getppid())
    return Watchdog(launch, launcher, boards[0], lambda _: Launch(Launcher.NONE), guarded=True)


def sign_of(process: Process, what: str = "training", **more: object) -> Sign:
    return Sign(1, process.number, process.started, what, time.monotonic(), **more)


def look_on(watching: Watchdog, seconds: int) -> None:
    for _ in range(seconds):
        watching.look(1)


def stop(process: Process) -> None:
    process.end(signal.SIGSTOP)
    until(process.stopped)


def test_a_long_deadline_is_said_once_where_a_rank_falls_silent(watching, boards, sleeper, capfd):
    boards[1].write(sign_of(sleeper))
    stop(sleeper)
    watching.look(1)  # which is the last sign
    look_on(watching, int(SECONDS_BEFORE_NOTICE) + 5)
    assert capfd.readouterr().err == (
        f"bigbatch: Rank 1 has given no sign of life for 30 s: it was stopped while it was training (process "
        f"{sleeper.number}). After 300 s (--deadline) the job ends.\n"
    )
    with pytest.raises(EndedError):
        look_on(watching, 300)
    assert capfd.readouterr().err.count("Rank 1 has given no sign of life for 300 s") == 1
    until(lambda: not sleeper.alive())


def test_a_rank_that_is_stopped_while_its_program_ends_is_named(watching, boards, sleeper, capfd):
    watching.allow(5)
    boards[1].write(sign_of(sleeper, "closing"))
    boards[1].leave()
    stop(sleeper)
    with pytest.raises(EndedError):
        look_on(watching, 10)
    assert "Rank 1 has given no sign of life for 5 s: it was stopped while it was closing" in capfd.readouterr().err


def test_ranks_that_were_never_started_here_are_not_looked_for_without_end(watching):
    watching.allow(5)
    look_on(watching, 10)
    assert not watching._silences


def test_a_process_that_came_later_under_the_same_number_is_spared(watching, boards, sleeper):
    boards[1].write(sign_of(Process(sleeper.number, sleeper.started - 1)))
    stop(sleeper)
    look_on(watching, 700)
    assert sleeper.alive()


def test_a_rank_that_hangs_without_being_stopped_is_silent_too(watching, boards, sleeper, capfd):
    watching.allow(5)
    boards[1].write(sign_of(sleeper))
    with pytest.raises(EndedError):
        look_on(watching, 10)
    assert "no sign of life for 5 s: it hangs while it was training" in capfd.readouterr().err


def test_one_rank_speaks(watching, boards, sleeper, capfd, monkeypatch):
    monkeypatch.setattr("bigbatch.comm.transports.watchdog.SECONDS_TO_SPEAK", 0)
    boards[1].write(sign_of(sleeper))
    assert boards[1].claim_the_end()
    with pytest.raises(EndedError):
        watching.look(1)
    assert capfd.readouterr().err == ""


def test_a_failed_attempt_does_not_end_the_next(boards, sleeper):
    first, second = boards
    second.write(sign_of(sleeper))
    assert second.claim_the_end()
    assert Board(Process.numbered(os.getppid()), "first", 0).ended()
    sleeper.end()
    until(lambda: not sleeper.alive())
    assert not Board(Process.numbered(os.getppid()), "first", 0).ended()
    assert not first.ended()


def test_what_a_killed_job_left_is_cleared_away_by_the_next(boards, sleeper):
    left = Board(sleeper, "0", 0)
    left.write(sign_of(sleeper))
    Board(Process.numbered(os.getppid()), "other", 0)
    assert left.folder.exists()
    sleeper.end()
    until(lambda: not sleeper.alive())
    Board(Process.numbered(os.getppid()), "other", 0)
    assert not left.folder.exists()
    assert boards[0].folder.exists()


def test_a_folder_that_somebody_else_may_write_to_is_not_trusted(boards):
    boards[0].folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's own"):
        Board(Process.numbered(os.getppid()), "first", 0)


def test_a_folder_that_was_cleared_away_is_made_again(watching, boards):
    shutil.rmtree(boards[0].folder)
    watching.look(1)
    assert boards[1].others()[0].doing == "starting"


def test_a_rank_that_ends_at_once_does_not_blind_one_that_begins(boards):
    first, second = boards
    second.leave()  # which sees nobody else yet, between the other's folder and its first sign
    life.appear(first, 0)
    life.show_life()
    assert second.others()[0].doing == "starting"


def test_the_last_rank_takes_the_folder_away(boards, sleeper):
    boards[1].write(sign_of(sleeper))
    boards[0].leave()
    assert boards[0].folder.exists()
    sleeper.end()
    until(lambda: not sleeper.alive())
    boards[0].leave()
    assert not boards[0].folder.exists()


@pytest.mark.usefixtures("watching")
def test_what_others_do_is_said_and_may_take_its_time(boards, sleeper):
    assert (elsewhere(), somebody_takes_time()) == (" Rank 0 was starting.", False)
    with doing("training"):
        boards[1].write(sign_of(sleeper))
        assert (elsewhere(), somebody_takes_time()) == (" Rank 0 was training.", False)
        boards[1].write(
            replace(sign_of(sleeper, "preparing the text", takes_its_time=True), since=time.monotonic() - 35)
        )
        assert elsewhere() == " Rank 0 was training; meanwhile rank 1 is preparing the text (35 s so far)."
        assert somebody_takes_time()
        stop(sleeper)
        assert "rank 1 has been stopped while preparing the text" in elsewhere()
    sleeper.end()
    until(lambda: not sleeper.alive())
    assert (elsewhere(), somebody_takes_time()) == (" Rank 0 was starting.", False)


@pytest.mark.parametrize(("name", "launches"), [("mpirun", True), ("mpirun_all.sh", False), ("torchrun-jobs", False)])
def test_a_users_script_is_no_launcher(tmp_path, name, launches):
    """When a proxy is gone, what started it is ended; a script that runs one job after the other must not be."""
    shutil.copy("/bin/sleep", tmp_path / name)
    with subprocess.Popen([tmp_path / name, "60"]) as program:
        process = Process.numbered(program.pid)
        assert process is not None
        until(lambda: (PROC / str(program.pid) / "comm").read_text().strip() == name)
        assert process.launches() == launches
        program.kill()


def test_who_was_started_by_nobody_is_not_watched():
    """setsid nohup bigbatch-exp ps serve &, whose shell may end."""
    Launch(Launcher.NONE).watch(1)
    assert watchdog() is None
    assert elsewhere() == ""


@pytest.mark.parametrize(
    ("address", "adopted", "watched"), [("", True, False), ("", False, True), ("n7:1", True, True)]
)
def test_ranks_that_were_left_behind_do_not_share_a_board_with_those_of_other_jobs(
    monkeypatch, address, adopted, watched
):
    """mpirun -n 2 sh -c 'bigbatch-exp ring &', twice: all ranks have the same parent, the first process."""
    monkeypatch.setattr(Process, "adopts", lambda _: adopted)
    own, rank = Process.numbered(os.getpid()), Launch(Launcher.MPI, 0, 2, 0, 2, address)
    found = launcher_of(rank, lambda process: rank if process == own else Launch(Launcher.NONE))
    assert found == (Process.numbered(os.getppid()) if watched else None)


@pytest.mark.usefixtures("watching")
def test_a_wait_goes_on_while_another_rank_takes_its_time(boards, sleeper):
    """K8: while rank 0 prepares a large text, the others' deadlines do not count."""
    gave_up = pytest.raises(TimeoutError)

    def give_up() -> NoReturn:
        raise TimeoutError

    boards[1].write(sign_of(sleeper, "preparing the text", takes_its_time=True))
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.5, 0.05, give_up)
    boards[1].write(sign_of(sleeper, "training"))
    with gave_up:
        wait_until(lambda: False, 0.05, give_up)


@pytest.mark.usefixtures("watching")
def test_phases_nest(boards):
    with doing("training"):
        with doing("validating"):
            assert boards[1].others()[0].doing == "validating"
        assert boards[1].others()[0].doing == "training"
    assert boards[1].others()[0].doing == "starting"


def test_what_takes_long_is_told_by_the_innermost_alone(monkeypatch):
    monkeypatch.setattr(life, "LONG", 0.02)
    told: list[str] = []
    life.tell_what_takes_long(told.append)
    try:
        with doing("getting ready"), doing("preparing the text"):
            until(lambda: len(told) >= 2)
        said = len(told)
        life.now_doing("training")
        time.sleep(0.1)
    finally:
        life.tell_what_takes_long(None)
    assert len(told) == said, "training shows its own progress"
    assert all(sentence.startswith("Still preparing the text after ") for sentence in told)
