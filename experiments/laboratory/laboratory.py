"""The laboratory: trains points, which are single runs, several at a time on all cores, and each only once.

A point is a request. Its run is kept in a folder that is named after everything that was asked for. So the same request
finds the run again, and a series that was interrupted continues where it stopped.
"""

import multiprocessing
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.files import unwritable
from bigbatch.comm.wires.processes import Process, namespace
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.study import LANGUAGE_MODELLING, Study
from bigbatch.experiments.runs.run import Run, make_folder
from bigbatch.experiments.training.conduct import conduct_alone
from bigbatch.experiments.training.identity import identity_of

Result = TypeVar("Result")

FOLDER_OPTION = "--runs"
"""The option that names the folder of all runs."""

SECONDS_BETWEEN_WORDS = 5.0


def identity(point: Point) -> str:
    """Computes the name of a point's run: a digest of everything that decides the run's results.

    That is every option, the content of every file that an option names (the user's text, FILE.py:Name, a network), the
    source code that trains, and the versions of the libraries it uses. What such a FILE.py imports is not included.

    Raises:
        ConfigurationError: there is no such option or strategy, or an option does not take its value.
    """
    return identity_of(point.request())


def read(folder: Path) -> Run | None:
    """Reads the run in a folder; None if there is none, or if it is incomplete.

    The last validation loss is in the last line of the metrics and again in the summary, so that metrics that were cut
    off are noticed even if they end with a whole line.
    """
    try:
        found = Run.read(folder)
        losses = [record["loss"] for record in found.metrics if record["kind"] == "validation"]
        return found if losses[-1] == found.summary["arms"][-1]["validation_loss"] else None
    except (ConfigurationError, LookupError):
        return None


def train(point: Point, folder: Path) -> None:
    """Train a point in this process; its folder appears only once the run is complete.

    Raises:
        ConfigurationError: what is asked for cannot be done, or the folder cannot be written.
    """
    part = folder.with_name(f"{folder.name}{PART}{_place()}-{os.getpid()}")
    try:
        make_folder(part, FOLDER_OPTION)
        run = conduct_alone(point.request(), part)
        if run.remarks:  # the run would not be found again
            raise ConfigurationError(
                f"{'; '.join(run.remarks)}. Make room there, or name another folder with {FOLDER_OPTION}."
            )
        if read(folder) is None:  # else another program has made the same run in the meantime
            put(part, folder)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder.parent):
            raise unwritable(folder.parent, error, FOLDER_OPTION, "folder") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def put(part: Path, folder: Path) -> None:
    """Rename a finished run's folder `part` to `folder`, and replace a damaged run that is there.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        part.rename(folder)
    except OSError:
        if read(folder) is not None:  # that of another program, which was quicker by a moment
            return
        if not folder.exists():
            raise
        shutil.rmtree(folder)
        part.rename(folder)


PART = ".part-"
"""Stands in an unfinished run's folder name between the run's name and the machine and process that train it."""


def clear(folder: Path) -> None:
    """Remove unfinished runs that ended processes of this machine have left in the folder of all runs."""
    for part in folder.glob(f"*{PART}*"):
        machine, _, process = part.name.rpartition(PART)[2].rpartition("-")
        if machine == _place() and process.isdecimal() and Process.numbered(int(process)) is None:
            shutil.rmtree(part, ignore_errors=True)


def _place() -> str:
    """Names this machine, and this container on it, whose process numbers say nothing about those of others."""
    return f"{platform.node()}-{namespace()}"


Inquiry = Generator[Sequence[Point], list[Run], Result]
"""A generator that yields points, is sent their runs, may yield more points, and returns its result."""


class Laboratory:
    """Trains points in worker processes, and reuses the runs that exist already.

    Args:
        folder: the folder of all runs.
        processes: number of processes that train at a time, with one thread each.
        tell: called with a sentence about the progress now and then.
        study: what is trained.

    Attributes:
        tell: called with a sentence for the user.
        study: what is trained.
        base: options of every point: the task, and the user's own text.
        made: number of runs that were trained here.
        found: number of runs that existed already.
    """

    def __init__(
        self,
        folder: Path,
        processes: int,
        tell: Callable[[str], None],
        study: Study = LANGUAGE_MODELLING,
    ) -> None:
        self.folder = folder
        self.study = study
        self.base = study.base
        self.made = self.found = 0
        self._processes = processes
        self.tell = tell
        self._pool: ProcessPoolExecutor | None = None
        self._asked: dict[str, Future[Run]] = {}
        self._end: BigBatchError | None = None
        self._progress = Progress(tell)

    def runs(self, points: Sequence[Point]) -> list[Run]:
        """Trains points, unless their runs exist already, and returns their runs in the same order.

        Raises:
            BigBatchError: a point cannot be trained.
        """

        def ask() -> Inquiry[list[Run]]:
            return (yield points)

        return self.inquire([ask()])[0]

    def inquire(self, inquiries: Sequence[Inquiry[Result]]) -> list[Result]:
        """Run several inquiries at the same time, and return the result of each.

        What an inquiry asks for next depends only on the runs that it was sent, so that the same points are trained
        however long each takes. Points of earlier inquiries are trained first.

        Raises:
            BigBatchError: a point cannot be trained.
        """
        results: dict[int, Result] = {}
        waiting: dict[int, list[Future[Run]]] = {}

        def go_on(number: int, runs: list[Run] | None) -> None:
            try:
                points = inquiries[number].send(runs) if runs is not None else next(inquiries[number])
                waiting[number] = [self._ask(point) for point in points]
            except StopIteration as end:
                waiting.pop(number, None)
                results[number] = end.value

        for number in range(len(inquiries)):
            go_on(number, None)
        while waiting:
            for number, futures in list(waiting.items()):
                if all(future.done() for future in futures):
                    go_on(number, [future.result() for future in futures])
            undone = {future for futures in waiting.values() for future in futures if not future.done()}
            if undone:
                wait(undone, timeout=1.0, return_when=FIRST_COMPLETED)
                self._progress.look(self.made, self.found, len(undone))
        return [results[number] for number in range(len(inquiries))]

    def _ask(self, point: Point) -> Future[Run]:
        """The run of a point, now or later."""
        name = identity(point)
        if name not in self._asked:
            folder = self.folder / name
            found = read(folder)
            if found is not None:
                self.found += 1
                self._asked[name] = Future()
                self._asked[name].set_result(found)
            else:
                self._asked[name] = self._train(point, folder)
        return self._asked[name]

    def _train(self, point: Point, folder: Path) -> Future[Run]:
        promise: Future[Run] = Future()

        def done(trained: Future[None]) -> None:
            try:
                trained.result()
                self.made += 1
                promise.set_result(Run.read(folder))
            except BrokenExecutor:
                promise.set_exception(self._broken())
            except BaseException as error:
                promise.set_exception(error)

        pool = self._started()
        try:
            with undisturbed():
                trained = pool.submit(train, point, folder)
            trained.add_done_callback(done)
        except BrokenExecutor:
            promise.set_exception(self._broken())
        return promise

    def _broken(self) -> BigBatchError:
        """The error for all runs that are not through when a process has ended; nobody can say which it trained."""
        if self._end is None:
            undone = sum(not asked.done() for asked in list(self._asked.values()))
            count = min(undone, self._processes)
            runs = "1 run was" if count == 1 else f"{count} runs were"
            self._end = BigBatchError(
                f"A process that trained was ended from outside, or ran out of memory, while {runs} under way. "
                "The same command goes on with what is missing."
            )
        return self._end

    def _started(self) -> ProcessPoolExecutor:
        """The processes, started when the first point is trained."""
        if self._pool is None:
            make_folder(self.folder, FOLDER_OPTION)
            clear(self.folder)
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            self._pool = ProcessPoolExecutor(
                self._processes, multiprocessing.get_context("spawn"), initializer=begin, initargs=(os.getpid(),)
            )
        return self._pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if error is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        clear(self.folder)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide Ctrl-C from processes that are started meanwhile; this process sees it afterwards.

    Otherwise each process that still imports, before `begin`, would end with a traceback. So would a process that this
    one stops feeding because it was interrupted itself.
    """
    if threading.current_thread() is not threading.main_thread():  # Python interrupts that one alone
        yield
        return
    interrupted: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    # Blocked as well, which processes inherit; by itself that would not do, as another thread may take the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if interrupted:
        raise KeyboardInterrupt


def begin(parent: int) -> None:
    """Prepare a worker process: it ignores Ctrl-C, which its parent handles, and ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class Progress:
    """Reports every few seconds how many runs are done.

    Attributes:
        tell: called with the sentence.
    """

    tell: Callable[[str], None]
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def look(self, made: int, found: int, undone: int) -> None:
        """Report the numbers of runs made, found and not yet done, if the last report is old enough."""
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_WORDS:
            return
        self._said = now
        there = f", {found} were there" if found else ""
        self.tell(f"{now - self._began:.0f} s: {made} runs made{there}, {undone} under way or waiting")
