"""What the command line can do, as Python functions: `bigbatch.run`, `bigbatch.compare` and `bigbatch.simulate`.

The commands call functions of this module, and `bigbatch` re-exports the three.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigbatch.comm.errors import BigBatchError, LaunchError
from bigbatch.comm.files import claimed
from bigbatch.comm.kinds import File, Flag, Several, checked
from bigbatch.comm.strategies import NAMED
from bigbatch.comm.transports.launch import detect
from bigbatch.experiments.planning.rows import sum_rows, update_rows, written
from bigbatch.experiments.planning.settings import SimulationRequest
from bigbatch.experiments.runs.results import Results
from bigbatch.experiments.runs.run import Records, Run, check_folders, chosen_folder, folder_name
from bigbatch.experiments.runs.table import has_staleness
from bigbatch.experiments.training import launcher
from bigbatch.experiments.training.assemble import check, strategy_of
from bigbatch.experiments.training.conduct import conduct
from bigbatch.experiments.training.settings import Request, Settings
from bigbatch.experiments.training.simulated import simulation_of

WORKERS_COMPARED = 4
"""Number of workers that each strategy gets in `compare` by default."""


def run(strategy: str, *, out: str | Path | None = None, quiet: bool = False, **choices: Any) -> Run | None:
    """Run an experiment over a strategy: the same training in several arms that see the same tokens.

    Several workers run in processes of their own: those that mpirun, torchrun or srun has started, or else processes
    that this call starts and waits for. With `simulate` all workers are simulated in this process.

    Args:
        strategy: the strategy's name: "ring", "ps:async", "my_file.py:MyStrategy".
        out: the run's folder; None for a new one below ./runs.
        quiet: whether to hide the progress.
        choices: options by name, as `bigbatch-exp STRATEGY --help` lists them, with underscores: `workers=4`,
            `tokens="200k"`, `arms=("large", "small")`, `simulate=64`. Values may be given as on the command line.

    Returns:
        The finished run. In processes that a launcher has started, None on all ranks but rank 0, which writes the run.

    Raises:
        ConfigurationError: there is no such strategy or option, or what is asked for cannot be done.
        LaunchError: the processes cannot be started.
        BigBatchError: the experiment failed; on every rank, if the ranks could agree on that.
    """
    folder, quiet = None if out is None else checked("out", File(), out), checked("quiet", Flag(), quiet)
    request = Request.of(strategy, choices)
    finished = conduct(request, folder, quiet=quiet, start=launcher.start, failed=_told)
    if finished is not None:
        _drawn([finished], finished.folder)
    return finished


def draw(runs: Sequence[Run], results: Results) -> None:
    """Draw the figures of finished runs: comparison.png, and staleness.png where there is staleness."""

    def comparison(path: Path) -> None:
        from bigbatch.experiments.figures.comparison import draw_comparison

        draw_comparison(runs, path)

    def staleness(path: Path) -> None:
        from bigbatch.experiments.figures.staleness import draw_staleness

        draw_staleness(runs, path)

    results.draw("comparison.png", comparison)
    if any(has_staleness(run.summary) for run in runs):
        results.draw("staleness.png", staleness)


def _drawn(runs: Sequence[Run], folder: Path) -> None:
    """Draw the figures of runs for a caller who gets the runs themselves, whatever became of their files."""
    results = Results(folder, [remark for run in runs for remark in run.remarks])
    draw(runs, results)
    for sentence in results.failures:
        logging.getLogger("bigbatch").error("bigbatch: %s.", sentence)


def compare(
    *strategies: str,
    out: str | Path | None = None,
    quiet: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    **choices: Any,
) -> list[Run]:
    """Run several strategies, one after the other, with the same number of workers and the same options.

    Args:
        strategies: names of the strategies.
        out: the folder of the comparison; None for a new one below ./runs. Each run has a folder in it.
        quiet: whether to hide the progress.
        tell: called with a line that names the strategy that runs next.
        choices: options by name, as for `run`; four workers by default.

    Raises:
        ConfigurationError: there is no such strategy or option, or what is asked for cannot be done.
        LaunchError: a launcher has started this process, or no other could be started.
        BigBatchError: an experiment failed.
    """
    requests = [Request.of(name, choices) for name in checked("The strategies", Several(NAMED), strategies)]
    folder, quiet = None if out is None else checked("out", File(), out), checked("quiet", Flag(), quiet)
    runs = list(compared(requests, folder, quiet=quiet, tell=tell))
    _drawn(runs, runs[0].folder.parent)
    return runs


def compared(
    requests: Sequence[Request], out: Path | None, *, quiet: bool, tell: Callable[[str], None]
) -> Iterator[Run]:
    """Run one experiment after the other, over a strategy each, and yield each run as soon as it has finished.

    The summary of the comparison is written after each, so that it is there if a later one fails.

    Args:
        requests: what is asked for.
        out: the folder of all; None for a new one below ./runs.
        quiet: whether to show no progress.
        tell: is told which strategy comes next.

    Raises:
        ConfigurationError, LaunchError, BigBatchError: as `compare`.
    """
    if not detect().alone:
        raise LaunchError("compare starts the processes of every strategy itself: run it without mpirun or torchrun.")
    requests = [replace(request, settings=_with_workers(request.settings)) for request in requests]
    for request in requests:  # all are looked at before anything runs
        check(request, request.settings.plan(), strategy_of(request))
        if request.settings.simulation.simulate is not None:
            simulation_of(request.settings)
    check_folders([request.strategy for request in requests])
    folder = chosen_folder(out, "compare")
    summaries: list[dict[str, Any]] = []
    with claimed(folder):  # from others who would write over the runs that have finished already
        for request in requests:
            name = request.strategy
            tell(f"── {name}")
            try:
                finished = conduct(request, folder / folder_name(name), quiet=quiet, start=launcher.start, failed=_told)
            except BigBatchError as error:
                raise type(error)(f"The strategy {name}: {error}") from error
            assert finished is not None, "this process is by itself"
            results = Results(folder, finished.remarks)
            summaries.append(finished.summary)
            results.keep({"runs": summaries})
            own = Results(finished.folder)
            draw([finished], own)
            yield replace(finished, remarks=(*results.failures, *own.failures))


def simulate(
    strategies: str | Sequence[str], *, tell: Callable[[str], None] = lambda _: None, **choices: Any
) -> Records:
    """Time updates of a large model, or one sum, on simulated clusters of up to thousands of workers.

    Args:
        strategies: the name of one strategy, or the names of several.
        tell: called with a line that names the row that is simulated next.
        choices: options by name, as `bigbatch-exp simulate --help` lists them, with underscores.

    Returns:
        A row for every strategy and number of workers, with times in seconds: the fields of
        `bigbatch.experiments.planning.updates.Row`, and `precision` and `wire`; or with `bytes` what
        `bigbatch.experiments.planning.rows.sum_rows` says.

    Raises:
        ConfigurationError: there is no such strategy or option, or it cannot be simulated.
    """
    names = checked("The strategies", Several(NAMED), [strategies] if isinstance(strategies, str) else strategies)
    request = SimulationRequest.of(choices)
    if request.bytes is not None:
        return Records(sum_rows(names, request))
    return Records(written(update_rows(names, request, tell), request.cluster))


def _with_workers(settings: Settings) -> Settings:
    """The settings with a number of workers, if they do not say one."""
    batch = settings.batch
    counted = (
        settings.simulation.simulate or batch.workers or (batch.batch_size and batch.micro_batch and batch.accumulate)
    )
    return settings if counted else settings.changed({"workers": WORKERS_COMPARED})


def _told(error: Exception, rank: int | None) -> None:
    """An error that ends all processes of a job: the others cannot say what it was."""
    where = "" if rank is None else f"on rank {rank}: "
    logging.getLogger("bigbatch").error("bigbatch: %s%s", where, error)
