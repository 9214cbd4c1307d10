"""The watchdog: ends a job of which a rank was stopped, and the ranks whose launcher is gone.

Waits for messages have deadlines, but much of a run waits for none: starting, loading modules, preparing the text,
writing files, closing. So every rank that a launcher started has a thread that shows that the rank lives, and looks
whether the others of its machine do. Ranks on other machines are watched there, and by the deadlines of the waits.
"""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from bigbatch.comm.bounds import foreign_work_is_over
from bigbatch.comm.errors import LaunchError
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.life import Board, appear, disappear, now_doing, show_life
from bigbatch.comm.wires.processes import PROC, Process, below

if TYPE_CHECKING:  # which makes the watchdog
    from bigbatch.comm.transports.launch import Launch

LOOKS = 20
"""How often the watchdog looks within a deadline, at least."""

LONGEST_BETWEEN_LOOKS = 1.0
"""Seconds between two looks, at most, so that a rank outlives its launcher by little more than that."""

SECONDS_TO_SPEAK = 1.0
"""Seconds that the other ranks leave the one that says why the job ends, before they end, too."""

SECONDS_BEFORE_NOTICE = 30.0
"""Seconds of silence after which a rank is spoken of, if the deadline is more than twice as long."""

LEAST_DEADLINE = 2.0
"""Seconds of silence that a rank may always keep, since a busy machine can keep it from its processor for as long."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.2
"""Seconds between two looks at how far the other ranks are, at first and after a while, when there is only to wait."""

CLOSING = "closing"
"""What a rank does when all its work is done."""

STARTED_BY = "BIGBATCH_STARTED_BY"
"""Environment variable that names the process which has started the launcher and waits for it."""

STANDARD_ERROR = 2

Detect = Callable[[Process | None], "Launch"]


@dataclass
class _Silence:
    """How long a rank has given no sign of life, of the time in which this rank was awake to see one."""

    beat: int | None = None
    ticks: int = 0
    seconds: float = 0.0
    noticed: bool = False

    def broken(self, beat: int | None, ticks: int) -> None:
        """Begins anew, because the rank has shown that it lives."""
        self.beat, self.ticks, self.seconds, self.noticed = beat, ticks, 0.0, False


class Watchdog:
    """Watches over the ranks that one launcher has started on this machine; this rank is one of them.

    Args:
        launch: how this process was started.
        launcher: the process that started this machine's ranks.
        board: where the ranks of this machine leave their signs of life.
        detect: finds out how a process was started; this one, if it is None.
        guarded: whether the launcher looks after its ranks, which end when it is gone.

    Attributes:
        deadline: seconds without a sign of life from a rank after which the job ends.
    """

    def __init__(self, launch: "Launch", launcher: Process, board: Board, detect: Detect, *, guarded: bool) -> None:
        self.deadline = DEFAULT_DEADLINE
        self._launch, self._launcher, self._board, self._detect = launch, launcher, board, detect
        self._silences = {place: _Silence() for place in range(launch.local_size) if place != launch.local_rank}
        self._unsearched = 0.0
        self._finished = False
        parent = launcher.parent()
        self._rest_of_launcher = parent if parent is not None and parent.launches() else None
        starter = _starter()
        self._guardians = {
            **({launcher: f"{launch.launcher.value} has ended (process {launcher.number})"} if guarded else {}),
            **({starter: f"the program that started it has ended (process {starter.number})"} if starter else {}),
        }
        self._wake = threading.Event()
        appear(board, launch.rank)
        # At the end of the program it runs after what was set up later, such as the end of MPI.
        weakref.finalize(self, self._leave, weakref.ref(self), os.getpid())

    def start(self) -> None:
        """Begins to watch, in a thread of its own."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def allow(self, deadline: float) -> None:
        """Sets the deadline, once it is known."""
        self.deadline = max(deadline, LEAST_DEADLINE)
        self._wake.set()

    def finished(self) -> None:
        """Says that this rank's work went well, so that at the end of its program it waits for the others' end."""
        self._finished = True

    def end_stopped(self) -> None:
        """End the other ranks of this machine that are stopped, because the job ends and they hear nothing gentler."""
        for process in self._stopped():
            process.end()

    def knows_better(self) -> bool:
        """Whether the launcher is gone, or a rank of this machine is stopped or has said why the job ends."""
        here = all(guardian.alive() for guardian in self._guardians)
        return not here or self._board.ended() or bool(self._stopped())

    def look(self, seconds: float) -> None:
        """Shows that this rank lives; ends it if its launcher is gone, and the job if another rank is silent too long.

        Args:
            seconds: how much time has passed since the last look.
        """
        with suppress(OSError):  # a full disk must not end a training
            show_life()
        for guardian, what in self._guardians.items():
            if not guardian.alive():
                self._end(f"Rank {self._launch.rank} ends because {what} and nobody looks after it any more.", [])
        if self._board.ended():  # whoever knew why has said it
            self._end("", [])
        unseen = []
        for place, silence in self._silences.items():
            beat = self._board.last_beat(place)
            if beat is None:
                unseen.append(place)
            elif beat != silence.beat:
                silence.broken(beat, 0)
            elif (sign := self._board.read(place)) is not None:
                self._listen(place, seconds, sign.rank, sign.doing, [sign.process])
        self._unsearched += seconds
        if unseen and self._unsearched >= self.deadline / LOOKS:
            self._look_for(unseen, self._unsearched)
            self._unsearched = 0.0

    def _look_for(self, places: list[int], seconds: float) -> None:
        """Looks among all processes for those of ranks that have left no sign yet; that takes longer than a look."""
        found = self._search()
        for place in places:
            if place in found:
                rank, processes = found[place]
                self._listen(place, seconds, rank, "loading bigbatch", processes)
                continue
            self._silences[place].seconds += seconds
            if self._silences[place].seconds > self.deadline:  # the launcher has started fewer ranks here than it says
                del self._silences[place]

    def _listen(self, place: int, seconds: float, rank: int, doing: str, processes: list[Process]) -> None:
        """Adds to the silence of a rank that does not show that it lives; ends the job if that takes too long."""
        silence = self._silences[place]
        if not any(process.alive() for process in processes):
            return  # the launcher knows how it ended
        stopped = next((process for process in processes if process.stopped()), None)
        ticks = sum(process.processor_ticks() for process in processes)
        if stopped is None and ticks != silence.ticks:  # it is at work, and lets none of its threads show that
            silence.broken(silence.beat, ticks)
            return
        silence.seconds += seconds
        number = (stopped or processes[0]).number
        state = f"{'was stopped' if stopped else 'hangs'} while it was {doing} (process {number})"
        if silence.seconds >= self.deadline:
            self._end(
                f"Rank {rank} has given no sign of life for {self.deadline:g} s: it {state}. So the job has been "
                "ended: see what holds that process, or allow more with --deadline.",
                processes,
            )
        noticeable = self.deadline > 2 * SECONDS_BEFORE_NOTICE and silence.seconds >= SECONDS_BEFORE_NOTICE
        if noticeable and not silence.noticed:
            silence.noticed = True
            if all(other == place or other > self._launch.local_rank for other in self._silences):  # one rank says it
                _say(
                    f"Rank {rank} has given no sign of life for {silence.seconds:.0f} s: it {state}. After "
                    f"{self.deadline:g} s (--deadline) the job ends."
                )

    def _stopped(self) -> list[Process]:
        """The processes of other ranks of this machine that are stopped."""
        processes = [sign.process for sign in self._board.others()]
        if len(processes) < len(self._silences):
            processes += [
                found for place, (_, several) in self._search().items() if place in self._silences for found in several
            ]
        return [process for process in dict.fromkeys(processes) if process.stopped()]

    def _search(self) -> dict[int, tuple[int, list[Process]]]:
        """Finds ranks among the launcher's processes: by their places on this machine, their numbers and processes."""
        found: dict[int, tuple[int, list[Process]]] = {}
        for process in below(self._launcher):
            with suppress(LaunchError):
                launch = self._detect(process)
                if _job(launch) == _job(self._launch):
                    found.setdefault(launch.local_rank, (launch.rank, []))[1].append(process)
        return found

    def _end(self, sentence: str, stuck: list[Process]) -> NoReturn:
        """End this process whatever its other threads do, and those that cannot end by themselves.

        Args:
            sentence: why, if this rank knows; the first rank to know says it, and the others leave it the time.
            stuck: processes of a rank that hangs.
        """
        if sentence and self._board.claim_the_end():
            _say(sentence)
        else:
            time.sleep(SECONDS_TO_SPEAK)
        for process in stuck:
            process.end()
        self.end_stopped()
        if not self._launcher.alive() and self._rest_of_launcher is not None:
            self._rest_of_launcher.end(signal.SIGTERM)  # mpirun waits for its proxy even when that is gone
        disappear()
        os._exit(1)

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            between = min(LONGEST_BETWEEN_LOOKS, self.deadline / LOOKS)
            self._wake.wait(between)
            self._wake.clear()
            now = time.monotonic()
            # Whoever was stopped for a time has seen nothing, and cannot say that the others were silent.
            self.look(min(now - last, 2 * between))
            last = now

    def _wait_for_others(self) -> None:
        """At the end of the program, wait for the end of the others, so that each is watched for as long as it lives.

        The first rank of the machine waits until the others' processes are gone, and the others until it has come here.
        """
        if not self._finished:  # the others may wait for this rank, which has failed, without end
            return
        now_doing(CLOSING)
        first = self._launch.local_rank == 0
        _wait_while(lambda: any(first or sign.doing != CLOSING for sign in self._board.others()))

    @staticmethod
    def _leave(reference: "weakref.ref[Watchdog]", process: int) -> None:
        if process != os.getpid():  # a copy that the program has made of itself
            return
        foreign_work_is_over()  # it was set up later, and so came earlier
        watchdog = reference()
        if watchdog is not None:
            watchdog._wait_for_others()
        disappear()


def _job(launch: "Launch") -> tuple[object, ...]:
    """What the ranks of one job have in common, where a shell has started several."""
    return launch.launcher, launch.size, launch.address


def watchdog() -> Watchdog | None:
    """The watchdog of this process, if it is a rank that a launcher started."""
    return _here[0] if _here else None


def give_way() -> None:
    """Waits while the watchdog has something to say, if whoever calls it has an error of the wires to report.

    If the job ends because a rank is silent or the launcher gone, this call does not return: the wires failed for that.
    """
    if _here:
        _wait_while(_here[0].knows_better)


def watch(detect: Detect, guards: Callable[[Process], bool]) -> None:
    """Has this process watch over the ranks beside it from now on, if the system shows who started them.

    Args:
        detect: finds out how a process was started; this one, if it is None.
        guards: says whether the process that started this one looks after it, so that it ends when that is gone.
    """
    launch = detect(None)
    launcher = launcher_of(launch, detect)
    if _here or launcher is None:
        return
    attempt = f"{launch.address}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}".replace("/", "")
    with suppress(OSError):  # without a place for signs of life, the deadlines of the waits must do
        board = Board(launcher, attempt, launch.local_rank)
        _here.append(Watchdog(launch, launcher, board, detect, guarded=guards(launcher)))
        _here[0].start()


_here: list[Watchdog] = []


def launcher_of(launch: "Launch", detect: Detect) -> Process | None:
    """The nearest process above this one that is not the same rank; a rank may be started through a shell or so."""

    def same(process: Process) -> bool:
        with suppress(LaunchError):
            return detect(process) == launch
        return False

    own = Process.numbered(os.getpid())
    if own is None or (own.environment() is not None and not same(own)):
        return None  # the program itself has set the variables, and nobody started it as a rank
    above = own.parent()
    while above is not None and same(above):
        above = above.parent()
    if above is not None and above.adopts() and not (launch.address or launch.job):
        return None  # between it and the launcher was a process that has ended; ranks of other jobs may be there, too
    return above


def started_by() -> str:
    """What `STARTED_BY` is set to by a process that starts a launcher and waits for it."""
    own = Process.numbered(os.getpid())
    return "" if own is None else f"{_machine()} {own.number} {own.started}"


def _starter() -> Process | None:
    """The process that started the launcher and waits for it, if that is said and can be seen from here."""
    try:
        machine, number, started = os.environ.get(STARTED_BY, "").split()
        process = Process(int(number), int(started))
    except ValueError:
        return None
    return process if machine == _machine() and process.alive() else None


def _machine() -> str:
    """A name that tells this machine, since its last start, from all others."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return os.uname().nodename


def _wait_while(condition: Callable[[], bool]) -> None:
    pause = SHORTEST_PAUSE
    while condition():
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _say(sentence: str) -> None:
    """Writes a sentence where errors go, whatever holds Python's own stream."""
    with suppress(OSError):  # nobody may be left to read it
        os.write(STANDARD_ERROR, f"bigbatch: {sentence}\n".encode())
