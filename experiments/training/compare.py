"""Running several strategies one after the other with the same options, each in processes of its own."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.runs.run import Run, folder_name
from bigbatch.experiments.training.launcher import launch_command, launch_environment

SECONDS_TO_END = 10


def run_strategies(
    names: Sequence[str], workers: int, options: Sequence[str], folder: Path, *, simulated: bool
) -> list[Run]:
    """Run each strategy in processes of its own; returns the runs, whose folders are below `folder`.

    Args:
        names: names of the strategies, as a user writes them.
        workers: number of workers of each strategy.
        options: the words of the command line that all strategies share.
        folder: the folder of the comparison.
        simulated: whether a single process simulates all ranks.

    Raises:
        BigBatchError: a run failed; it has printed the reason itself.
    """
    commands = {}
    for name in names:  # all names are looked up before anything runs
        place = folder / folder_name(name)
        arguments = [name, "-n", str(workers), "--out", str(place), *options]
        strategy = STRATEGIES.load(name)
        single = simulated or strategy.ranks_for(workers) == 1
        commands[name] = (
            [sys.executable, "-m", "bigbatch.experiments", *arguments]
            if single
            else launch_command(strategy, workers, arguments)
        )
    for name, command in commands.items():
        print(f"── {name}", file=sys.stderr, flush=True)
        status = _run(command)
        if status:
            raise BigBatchError(f"The strategy {name} ended with exit status {status}; see its message above.")
    return [Run.read(folder / folder_name(name)) for name in names]


def _run(command: list[str]) -> int:
    """Run a launcher to its end; if we are interrupted, it is ended with us."""
    with subprocess.Popen(command, env=launch_environment(command), stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
