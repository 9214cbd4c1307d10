"""The files in /dev/shm through which MPI's processes share memory, and which they leave there when a job is aborted.

MPICH 5 makes `mpich_shm_JOB_NODE` and removes it when MPI ends as it should; earlier ones `mpich_shar_tmpXXXXXX`, which
they remove as soon as everyone has it. Open MPI makes `vader_segment.*` (4), `sm_segment.*` (5) or `open_mpi.*` (ompi
6322, 7394, 10040).

Run as a program, with the process of a launcher and the mark of its job, this removes what that job has left. It needs
nothing but Python itself, so that it is watching before MPI begins.
"""

import contextlib
import ctypes
import os
import re
import select
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SHARED = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux

NAMES = re.compile(r"mpich_(shm|vci)_[0-9a-f]+_[0-9]+|mpich_shar_tmp\w+|(vader|sm)_segment\..+|open_mpi\.[0-9]+")
"""How MPI libraries name their files."""

EARLY = re.compile(r"mpich_shm_[0-9a-f]+_[0-9]+")
"""The files that are opened by name only while MPI begins."""

MARK = "BIGBATCH_JOB"
"""The variable by which the processes of a job that bigbatch started are known."""

SECONDS_BETWEEN_LOOKS = 0.1
"""Seconds after which new files are looked for again, at most; Linux says at once when one is made."""

CREATED = 0x100
"""What inotify(7) is asked to tell: IN_CREATE."""

LOOKS = 5
"""Number of looks after which a new file belongs to another job: whoever makes one has it mapped at once."""


def segments() -> list[Path]:
    """Lists the files of MPI libraries that belong to this user."""
    found = []
    with contextlib.suppress(OSError):  # there is no such folder on other systems
        for entry in os.scandir(SHARED):
            with contextlib.suppress(OSError):  # it is gone already
                if NAMES.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    found.append(Path(entry.path))
    return sorted(found)


def living() -> list[int]:
    """Lists the numbers of the processes that live; none where the system does not show them."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - much quicker
    except OSError:
        return []


def users(paths: Iterable[Path], processes: Iterable[int] | None = None) -> dict[Path, list[int]]:
    """Finds the living processes that have files open or mapped.

    A file that a process has opened is mapped before it is closed. So whoever looks for open files first, and then for
    mapped ones, misses none.

    Args:
        paths: the files.
        processes: the numbers of the processes to look at; None for all.

    Returns:
        The numbers of the processes, by file.
    """
    wanted: dict[tuple[int, int], Path] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            about = path.stat()
            wanted[about.st_dev, about.st_ino] = path
    found: dict[Path, list[int]] = {path: [] for path in wanted.values()}
    if wanted:
        for process in living() if processes is None else processes:
            for file in _opened(process) | _mapped(process):
                if file in wanted:
                    found[wanted[file]].append(process)
    return found


def _opened(process: int) -> set[tuple[int, int]]:
    """The files that a process has open, by device and number."""
    files = set()
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's
        for entry in os.scandir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                about = entry.stat()
                files.add((about.st_dev, about.st_ino))
    return files


def _mapped(process: int) -> set[tuple[int, int]]:
    """The files that a process has mapped, by device and number."""
    files = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:  # more than memory of its own; less, where a process that ends cuts the list off
                major, _, minor = fields[3].partition(":")
                files.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    return files


def orphans() -> list[Path]:
    """Lists this user's files of MPI libraries that no living process uses."""
    return [path for path, processes in users(segments()).items() if not processes]


def remove(paths: Iterable[Path]) -> list[Path]:
    """Removes files; returns those that were still there."""
    removed = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed.append(path)
    return removed


def forget_own() -> None:
    """Removes the names of the memory that this process shares already; the memory lasts as long as its processes.

    One process of a machine calls this when all the job's processes there have it. Nothing can be left behind then.
    """
    mapped = _mapped(os.getpid())
    for path in segments():
        with contextlib.suppress(OSError):
            about = path.stat()
            if EARLY.fullmatch(path.name) and (about.st_dev, about.st_ino) in mapped:
                path.unlink()


def tidy_after(launcher: int, mark: str) -> None:
    """Waits until a job is over, and removes what its processes have left.

    Args:
        launcher: the number of the launcher's process.
        mark: the value of `MARK` that the job's processes have.
    """
    try:
        ended = os.pidfd_open(launcher)
    except OSError:  # it has ended already
        return
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    # A job that fails as soon as MPI has begun may have its files for less time than passes between two looks.
    created = _created_in(SHARED)
    if created is not None:
        poll.register(created, select.POLLIN)
    looks: Counter[Path] = Counter()
    own: set[Path] = set()
    over = False
    while not over:
        told = [descriptor for descriptor, _ in poll.poll(1000 * SECONDS_BETWEEN_LOOKS)]
        over = ended in told
        if created is not None and created in told:
            os.read(created, 65_536)
        if new := [path for path in segments() if looks[path] < LOOKS and path not in own]:
            looks.update(new)
            # The job's processes first: they may be gone before all others' memory has been looked through.
            ranks = [process for process in living() if _marked(process, mark)]
            own |= {path for path, processes in users(new, ranks).items() if processes}
    while own:
        unused = {path for path, processes in users(own).items() if not processes}
        remove(unused)
        own = {path for path in own - unused if path.exists()}
        time.sleep(10 * SECONDS_BETWEEN_LOOKS if own else 0)


def _created_in(folder: Path) -> int | None:
    """A descriptor at which Linux tells of every file that is made in a folder; None where it does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        descriptor: int = library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if descriptor >= 0 and library.inotify_add_watch(descriptor, os.fsencode(folder), CREATED) >= 0:
            return descriptor
    return None


def _marked(process: int, mark: str) -> bool:
    with contextlib.suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return False


if __name__ == "__main__":
    tidy_after(int(sys.argv[1]), sys.argv[2])
