"""`bigbatch-exp compare`: several strategies, one after the other, in one table and one figure."""

from typing import TYPE_CHECKING

import click

from bigbatch.comm.kinds import Name
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands.options import Command, OutputSettings, Value, configured, takes
from bigbatch.experiments.training.settings import Request, Settings

if TYPE_CHECKING:  # whoever only asks for help must not wait for NumPy
    from bigbatch.experiments.runs.run import Run


@click.command(cls=Command)
@click.argument("strategies", nargs=-1, required=True, type=Value(Name(STRATEGIES.names, "FILE.py:Name", "STRATEGY")))
@takes(Settings, OutputSettings)
@configured
def compare(settings: Settings, output: OutputSettings, strategies: tuple[str, ...]) -> None:
    """Run several strategies with as many workers each; one table and one figure over all."""
    from bigbatch.comm.errors import BigBatchError
    from bigbatch.experiments import api
    from bigbatch.experiments.commands.output import present, results_in, told
    from bigbatch.experiments.runs.table import compared_verdict

    requests = [Request(name, settings) for name in dict.fromkeys(strategies)]
    runs: list[Run] = []
    failures: list[str] = []
    try:
        for run in api.compared(requests, output.out, quiet=output.quiet, tell=told(True)):
            runs.append(run)
            failures += run.remarks
    except BigBatchError as error:
        if not runs:
            raise
        failures.append(str(error).rstrip("."))  # what has finished before is presented all the same
    folder, summaries = runs[0].folder.parent, [run.summary for run in runs]
    with results_in(folder, named=not (output.json or output.quiet), failures=failures) as results:
        results.show(lambda: present(runs, {"runs": summaries}, lambda: compared_verdict(summaries), output))
        api.draw(runs, results)
