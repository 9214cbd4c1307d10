"""Running an experiment in this process, in processes that a launcher started, or in processes started for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bigbatch.comm.errors import INTERRUPTED, BigBatchError, ConfigurationError, LaunchError, exit_status
from bigbatch.comm.foreign import explained
from bigbatch.comm.transports.launch import Launch, Launcher, detect
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.runs.run import Run, new_folder
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


def conduct(
    request: Request, out: Path | None, *, quiet: bool, start: Start, failed: Failed, launch: Launch | None = None
) -> Run | None:
    """Run an experiment, whether its ranks are simulated, are started here, or were started by a launcher.

    Args:
        request: what is asked for.
        out: the run's folder; None for a new one below ./runs.
        quiet: whether to hide the progress.
        start: starts the processes, if several are needed and no launcher has started this one.
        failed: called with an error that only this rank knows of.
        launch: how this process was started; None to find out from its environment.

    Returns:
        The run; None on ranks other than rank 0, which writes the run.

    Raises:
        BigBatchError: the experiment cannot be run or failed; on every rank, if the ranks could agree on that.
    """
    strategy = strategy_of(request)
    settings = request.settings
    launch = launch or detect()
    started = None if launch.launcher is Launcher.NONE else strategy.workers_among(launch.size)
    simulated = settings.simulation.simulate
    if simulated is not None and started is not None:
        raise LaunchError("--simulate runs all ranks in one process: run it without mpirun or torchrun.")
    plan = settings.plan(started)
    check(request, plan, strategy)
    name = f"simulated-{simulated}" if simulated is not None else str(plan.workers)
    folder = out or new_folder(f"{Path(request.strategy).name.replace(':', '-')}-{name}")
    if simulated is not None:
        simulation = simulation_of(settings)

        def work(transport: Transport) -> None:
            reporter = Reporter(quiet=quiet or transport.rank != 0)
            Experiment(request, strategy, plan, torch.device("cpu"), folder, reporter, simulation).run(transport)

        simulation.run(strategy.ranks_for(plan.workers), work, settings.wires.deadline)
        return Run.read(folder)
    if started is None and strategy.ranks_for(plan.workers) > 1:
        words = [*request.words(), "--out", str(folder), *(["--quiet"] if quiet else [])]
        start(launch_command(strategy, plan.workers, words))
        return Run.read(folder)
    device = resolve_device(settings.machine.device, launch)
    reporter = Reporter(quiet=quiet or launch.rank != 0)
    experiment = Experiment(request, strategy, plan, device, folder, reporter)
    with connected(
        lambda: strategy.connect(launch, str(device), settings.wires.deadline), failed, reporter.tell
    ) as transport:
        experiment.run(transport)
        return Run.read(folder) if transport.rank == 0 else None


def conduct_alone(request: Request, folder: Path) -> Run:
    """Run an experiment of one process, quietly, in this process, whoever started it.

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

    run = conduct(request, folder, quiet=True, start=refuse, failed=failed, launch=Launch(Launcher.NONE))
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
    transport = connect()
    alone = transport.size == 1
    try:
        yield transport
    except BigBatchError as error:
        if not error.everywhere and not alone:
            failed(error, None)
            transport.abort(exit_status(error))
        transport.close()
        raise
    except KeyboardInterrupt:
        if transport.rank == 0:
            tell("Interrupted; what was measured so far is in the run's folder")
        if alone:
            raise
        transport.abort(INTERRUPTED)
    except (Exception, SystemExit) as raised:  # a fault of ours, or of a user's model, task or strategy
        told = explained(raised) or raised
        if alone or isinstance(told, SystemExit):
            raise
        time.sleep(SECONDS_APART * min(transport.rank, MOST_APART))
        failed(told, transport.rank)
        transport.abort(exit_status(told))
    transport.close()
