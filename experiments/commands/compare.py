"""`bigbatch-exp compare`: several strategies, one after the other, in one table and one figure."""

import click

from bigbatch.comm.kinds import Name
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands.options import Command, OutputSettings, Value, configured, takes
from bigbatch.experiments.training.settings import Request, Settings


@click.command(cls=Command)
@click.argument("strategies", nargs=-1, required=True, type=Value(Name(STRATEGIES.names, "FILE.py:Name", "STRATEGY")))
@takes(Settings, OutputSettings)
@configured
def compare(settings: Settings, output: OutputSettings, strategies: tuple[str, ...]) -> None:
    """Run several strategies with as many workers each; one table and one figure over all."""
    from bigbatch.experiments import api
    from bigbatch.experiments.commands.output import present, told
    from bigbatch.experiments.runs.table import compared_verdict

    requests = [Request(name, settings) for name in dict.fromkeys(strategies)]
    runs = api.compared(requests, output.out, quiet=output.quiet, tell=told(True))
    summaries = [run.summary for run in runs]
    present(runs, runs[0].folder.parent, {"runs": summaries}, compared_verdict(summaries), output)
