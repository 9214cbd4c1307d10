"""Measurements in processes of their own: commands of `bigbatch-exp`, started over the ranks that they measure."""

import subprocess
from collections.abc import Callable, Sequence

from bigbatch.comm.errors import BigBatchError
from bigbatch.experiments.measuring.wires import all_reduce_named
from bigbatch.experiments.training.launcher import launch_command, launch_environment, tidied

SECONDS_TO_END = 590
"""A measurement that takes longer hangs."""


def measurement(name: str, ranks: int, arguments: Sequence[str], tell: Callable[[str], None]) -> str:
    """Run a command over so many ranks, and return what it prints.

    Args:
        name: of the measurement, for whoever waits.
        ranks: how many processes are started.
        arguments: the words behind `bigbatch-exp`.
        tell: is told that the measurement begins.

    Raises:
        BigBatchError: the command failed, and has said why itself; or it was not done in time, and was ended.
    """
    tell(f"── {name}")
    command = launch_command(all_reduce_named("ring"), ranks, list(arguments))
    environment = launch_environment(command)
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8") as process,
        tidied(process.pid, environment),
    ):
        try:
            printed, _ = process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise BigBatchError(
                f"The measurement {name} was not done after {SECONDS_TO_END} s, and was ended."
            ) from error
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise BigBatchError(f"The measurement {name} ended with exit status {process.returncode}; see above.")
    return printed
