"""Signs of life: what each rank of this machine is doing, for the others to see without a message.

The ranks of a job that run on one machine share a folder, with a file for each of them. Its content says what the rank
does, and the time of its last change moves as long as the rank lives. So it works before the wires are up, too.
"""

import contextlib
import json
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigbatch.comm.wires.processes import Process, namespace

LONG = 10.0
"""Seconds after which whoever listens is told what still goes on; then again each time it has taken twice as long."""

ENDED = "ended"
"""Name of the file that whoever ends the job creates, so that one rank alone speaks."""


@dataclass(frozen=True)
class Sign:
    """What a rank says about itself.

    Attributes:
        rank: its number in the job.
        number: its process number.
        started: when that process was started; see `Process`.
        doing: what it does, as a participle: "preparing the text".
        since: when it began to, on the machine's monotonic clock, in seconds.
        takes_its_time: whether it may take as long as it lives, so that nobody's deadline counts meanwhile.
    """

    rank: int
    number: int
    started: int
    doing: str
    since: float
    takes_its_time: bool = False

    @property
    def process(self) -> Process:
        """Returns the process that the rank runs in, which may have ended since."""
        return Process(self.number, self.started)


class Board:
    """The folder in which the ranks of one job and machine leave their signs of life.

    Args:
        launcher: the process that started the ranks of this machine; each of its attempts has a board of its own.
        attempt: tells the attempts of one launcher apart.
        place: this rank's number among those of the machine.

    Raises:
        OSError: the folder cannot be made, or belongs to somebody else.
    """

    def __init__(self, launcher: Process, attempt: str, place: int) -> None:
        _sweep()
        self.folder = _root() / f"{_prefix()}{launcher.number}-{launcher.started}-{attempt}"
        with contextlib.suppress(FileNotFoundError):  # a rank that ends already takes it away; `beat` makes it again
            self._make_folder()
        self.place = place
        self._own = self.folder / str(place)
        if not self.others():  # an earlier attempt with the same name has failed
            (self.folder / ENDED).unlink(missing_ok=True)

    def write(self, sign: Sign) -> None:
        """Replaces this rank's sign."""
        new = self.folder / f"{self.place}.new"
        new.write_text(json.dumps(asdict(sign)), encoding="utf-8")
        new.replace(self._own)

    def beat(self, sign: Sign) -> None:
        """Shows that this rank lives, and what it does if somebody has cleared that away."""
        try:
            os.utime(self._own)
        except FileNotFoundError:
            self._make_folder()
            self.write(sign)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_strangers(self.folder)

    def last_beat(self, place: int) -> int | None:
        """When a rank last showed that it lives, in nanoseconds of a clock of its own; None if it never did."""
        try:
            return (self.folder / str(place)).stat().st_mtime_ns
        except OSError:
            return None

    def read(self, place: int) -> Sign | None:
        """Reads a rank's sign; None if it has left none."""
        try:
            return Sign(**json.loads((self.folder / str(place)).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def others(self) -> list[Sign]:
        """Reads the signs of all other ranks whose processes run."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except OSError:
            return []
        places = sorted(int(name) for name in names if name.isdecimal() and int(name) != self.place)
        return [sign for place in places if (sign := self.read(place)) is not None and sign.process.alive()]

    def claim_the_end(self) -> bool:
        """Makes this rank the one that says why the job ends; False if another has that task."""
        try:
            (self.folder / ENDED).touch(exist_ok=False)
        except OSError:
            return False
        return True

    def ended(self) -> bool:
        """Whether a rank has said that the job ends."""
        return (self.folder / ENDED).exists()

    def leave(self) -> None:
        """Takes the folder away if no other rank is left; else a rank that is stopped while it ends would be nobody."""
        if not self.others():
            shutil.rmtree(self.folder, ignore_errors=True)


def _root() -> Path:
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own below it, which nobody else may enter
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _prefix() -> str:
    """Begins the names of this user's boards, in which process numbers mean what they mean here, in this container."""
    return f"bigbatch-{os.geteuid()}-{namespace()}-"


def _sweep() -> None:
    """Removes the folders of this user's jobs whose launchers are gone, and which nobody could clear away."""
    for folder in _root().glob(f"{_prefix()}*"):
        with contextlib.suppress(ValueError, OSError):
            number, started, _ = folder.name.removeprefix(_prefix()).split("-", 2)
            if not Process(int(number), int(started)).alive():
                _refuse_strangers(folder)
                shutil.rmtree(folder, ignore_errors=True)


def _refuse_strangers(folder: Path) -> None:
    """A folder that somebody else has made could name processes that are none of ours."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's own")


class _Station:
    """This process's own sign, if it is one of several ranks that a launcher started."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.sign = Sign(0, 0, 0, "starting", 0.0)
        self.tell: Callable[[str], None] | None = None

    def say(self, doing: str, takes_its_time: bool) -> None:
        self.sign = replace(self.sign, doing=doing, since=time.monotonic(), takes_its_time=takes_its_time)
        if self.board is not None:
            with contextlib.suppress(OSError):  # a full disk must not end a training
                self.board.write(self.sign)


_station = _Station()


def appear(board: Board, rank: int) -> None:
    """Have this process leave its signs of life on a board from now on."""
    own = Process.numbered(os.getpid()) or Process(os.getpid())
    _station.board = board
    _station.sign = replace(_station.sign, rank=rank, number=own.number, started=own.started, since=time.monotonic())
    with contextlib.suppress(FileNotFoundError):  # as in `Board`
        board.write(_station.sign)


def show_life() -> None:
    """Shows that this process lives.

    Raises:
        OSError: the board cannot be written to.
    """
    if _station.board is not None:
        _station.board.beat(_station.sign)


def disappear() -> None:
    """Has this process leave no more signs of life; the last process of the job takes all of them away."""
    board, _station.board = _station.board, None
    if board is not None:
        with contextlib.suppress(OSError):  # the next job clears away what is left
            board.leave()


def now_doing(what: str) -> None:
    """Says what this rank does from now on, as a participle, for others to tell where it is stuck."""
    _station.say(what, takes_its_time=False)


def tell_what_takes_long(tell: Callable[[str], None] | None) -> None:
    """Has somebody be told in a sentence, without its full stop, what this process is `doing` for long; None ends it.

    Nobody is told of what `now_doing` says, such as training, which shows its own progress.
    """
    _station.tell = tell


@contextmanager
def doing(what: str, *, takes_its_time: bool = False) -> Iterator[None]:
    """Says what this rank does within the context, as a participle: "preparing the text".

    Args:
        what: what it does.
        takes_its_time: whether the others wait for as long as it shows that it lives, whatever their deadline.
    """
    before, ended = _station.sign, threading.Event()
    _station.say(what, takes_its_time)
    if _station.tell is not None:
        threading.Thread(target=_tell_of, args=(what, _station.tell, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        _station.say(before.doing, before.takes_its_time)


def _tell_of(what: str, tell: Callable[[str], None], ended: threading.Event) -> None:
    seconds = waits = LONG
    while not ended.wait(waits):
        if _station.sign.doing == what:  # else something within it speaks
            tell(f"Still {what} after {seconds:.0f} s; Ctrl-C ends it")
        seconds, waits = 2 * seconds, seconds


def somebody_takes_time() -> bool:
    """Whether another rank of this machine does what may take as long as it lives, such as preparing a long text."""
    return _station.board is not None and any(sign.takes_its_time for sign in _station.board.others())


def elsewhere() -> str:
    """Says what this rank does, and which ranks of its machine do something else, as a sentence after a space.

    Says nothing where there is no launcher, and so nobody else on this machine.
    """
    if _station.board is None:
        return ""
    now, own = time.monotonic(), _station.sign
    found = [
        f"rank {sign.rank} {'has been stopped while' if sign.process.stopped() else 'is'} {sign.doing} "
        f"({now - sign.since:.0f} s so far)"
        for sign in _station.board.others()
        if sign.doing != own.doing or sign.process.stopped()
    ]
    several = [*found[:4], *(["and so on"] if len(found) > 4 else [])]
    return f" Rank {own.rank} was {own.doing}{'; meanwhile ' if several else ''}{'; '.join(several)}."
