"""Running an experiment in this process, in processes that a launcher started, or in processes started for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bigbatch.comm.errors import (
    INTERRUPTED,
    BigBatchError,
    CommunicationError,
    ConfigurationError,
    LaunchError,
    exit_status,
)
from bigbatch.comm.foreign import explained, same_directory
from bigbatch.comm.transports.families import Launcher
from bigbatch.comm.transports.launch import Launch, detect
from bigbatch.comm.transports.watchdog import give_way
from bigbatch.comm.wires.life import doing, now_doing
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.runs.run import SUMMARY, Run, chosen_folder
from bigbatch.experiments.training.assemble import check, resolve_device, strategy_of
from bigbatch.experiments.training.experiment import Experiment
from bigbatch.experiments.training.launcher import launch_command
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.settings import Request
from bigbatch.experiments.training.simulated import simulation_of

Start = Callable[[list[str]], None]
"""A function that starts the processes of a job by a command, and returns when they have ended without an error."""

Failed = Callable[[Exception, int | None], None]
"""A function that is told of an error that only this rank knows of, and of the rank, before the job is ended."""


@same_directory()
def conduct(
    request: Request,
    out: Path | None,
    *,
    quiet: bool,
    start: Start,
    failed: Failed,
    launch: Launch | None = None,
    returns: bool = True,
) -> Run | None:
    """Run an experiment, whether its ranks are simulated, are started here, or were started by a launcher.

    Args:
        request: what is asked for.
        out: the run's folder; None for a new one below ./runs.
        quiet: whether to hide the progress.
        start: starts the processes, if several are needed and no launcher has started this one.
        failed: called with an error that only this rank knows of.
        launch: how this process was started; None to find out from its environment.
        returns: whether `start` returns; the run's folder is left to the processes that take the place of this one.

    Returns:
        The run; None on ranks other than rank 0, which writes the run.

    Raises:
        BigBatchError: the experiment cannot be run or failed; on every rank, if the ranks could agree on that.
    """
    strategy = strategy_of(request)
    settings = request.settings
    launch = launch or detect()
    started = None if launch.alone else strategy.workers_among(launch.size)
    simulated = settings.simulation.simulate
    if simulated is not None and started is not None:
        raise LaunchError("--simulate runs all ranks in one process: run it without mpirun or torchrun.")
    plan = settings.plan(started)
    check(request, plan, strategy)
    _keep_model(settings.model.model, out)
    name = f"simulated-{simulated}" if simulated is not None else str(plan.workers)
    place = partial(chosen_folder, out, f"{Path(request.strategy).name.replace(':', '-')}-{name}")
    if simulated is not None:
        simulation = simulation_of(settings)
        finished: list[Run | None] = []

        def work(transport: Transport) -> None:
            reporter = Reporter(quiet=quiet or transport.rank != 0)
            rank = Experiment(request, strategy, plan, torch.device("cpu"), place, reporter, simulation)
            finished.append(rank.run(transport))

        simulation.run(strategy.ranks_for(plan.workers), work, settings.wires.deadline)
        return next(run for run in finished if run is not None)
    if started is None and strategy.ranks_for(plan.workers) > 1:
        folder = place() if returns and out is None else out
        words = [*request.words(), *(["--out", str(folder)] if folder else []), *(["--quiet"] if quiet else [])]
        command = launch_command(strategy, plan.workers, words)
        if folder is None:
            start(command)
            raise AssertionError("the processes that take the place of this one choose the folder")
        return _started(folder, lambda: start(command), new=out is None)
    device = resolve_device(settings.machine.device, launch)
    reporter = Reporter(quiet=quiet or launch.rank != 0)
    experiment = Experiment(request, strategy, plan, device, place, reporter)
    with connected(
        lambda: strategy.connect(launch, str(device), settings.wires.deadline), failed, reporter.tell
    ) as transport:
        return experiment.run(transport)


def _keep_model(model: str | None, out: Path | None) -> None:
    """Refuses to write a run where the model that it begins with is: the run would remove it first.

    Raises:
        ConfigurationError: the model's folder is in the run's.
    """
    if model is not None and out is not None and out.resolve() in Path(model).resolve().parents:
        raise ConfigurationError(
            f"The model {model} is in the folder {out} of the run, which replaces it: choose another folder by --out."
        )


def _started(folder: Path, start: Callable[[], None], *, new: bool) -> Run:
    """Start the processes of a job, and read the run that they have written.

    Processes that have finished the run may fail afterwards, over a figure for example. Then the run counts.

    Args:
        folder: the run's folder.
        start: starts the processes, and returns when they have ended.
        new: whether the folder was made for this job, and goes if the job leaves it empty.
    """
    before = _stamp(folder)
    try:
        start()
    except BaseException as error:
        if not isinstance(error, BigBatchError) or _stamp(folder) in (None, before):
            if new and not any(folder.iterdir()):
                folder.rmdir()
            raise
        run = Run.read(folder)
        return replace(run, remarks=(*run.remarks, str(error).rstrip(".")))
    return Run.read(folder)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Tells one summary in a folder from the next: (inode, time of its writing); None if there is none."""
    try:
        status = (folder / SUMMARY).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def conduct_alone(request: Request, folder: Path) -> Run:
    """Run an experiment of one process, quietly, in this process, whoever started it; its models are not kept.

    Args:
        request: what is asked for: one worker, or a simulation.
        folder: the folder of the run.

    Raises:
        ConfigurationError: the experiment cannot be run, or needs other processes.
    """

    def refuse(_: list[str]) -> None:
        raise ConfigurationError(f"One process cannot do what takes several: {request.command()}.")

    def failed(error: Exception, _: int | None) -> None:
        raise AssertionError("an error in a job of one rank is raised") from error

    alone = replace(request, settings=request.settings.changed({"weights": False}))
    run = conduct(alone, folder, quiet=True, start=refuse, failed=failed, launch=Launch(Launcher.NONE))
    assert run is not None, "the only rank is rank 0"
    return run


SECONDS_APART, MOST_APART = 1.0, 3
"""A fault of the user's code is often everybody's. Each rank, but not more than the first few, waits so many seconds
longer than the one before it until it speaks: the first then ends the job, and one rank has spoken for all."""


@contextmanager
def connected(connect: Callable[[], Transport], failed: Failed, tell: Callable[[str], None]) -> Iterator[Transport]:
    """Provides the transport for a job, and ends the whole job on an error that only this rank knows of.

    An error that every rank has, or one in a job of a single rank, is raised.

    Args:
        connect: makes the transport.
        failed: called with an error that only this rank knows of.
        tell: called with what the user should know, a sentence without its full stop.
    """
    try:
        with doing("connecting the ranks"):
            transport = connect()
    except CommunicationError:
        give_way()
        raise
    alone = transport.size == 1
    try:
        yield transport
    except BigBatchError as error:
        if isinstance(error, CommunicationError):
            give_way()
        if not error.everywhere and not alone:
            failed(error, None)
            transport.abort(exit_status(error))
        transport.close()
        raise
    except BaseException as raised:  # a fault of ours, or of a user's model, task or strategy, or the user's Ctrl-C
        told = explained(raised) or raised
        if isinstance(told, KeyboardInterrupt):
            if transport.rank == 0:
                tell("Interrupted; what was measured so far is in the run's folder")
            if not alone:
                transport.abort(INTERRUPTED)
        if alone or not isinstance(told, Exception):
            raise
        time.sleep(SECONDS_APART * min(transport.rank, MOST_APART))
        failed(told, transport.rank)
        transport.abort(exit_status(told))
    now_doing("closing the wires")
    transport.close()
