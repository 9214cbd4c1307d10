"""The command of every strategy: `bigbatch-exp ring` runs an experiment over the ring."""

import sys
from typing import Any

import click

from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands.options import Command, Flagged, OutputSettings, configuration, flags
from bigbatch.experiments.training.settings import Request, Settings, own_options


def strategy_command(name: str) -> click.Command:
    """Makes the command that runs an experiment over a strategy.

    Raises:
        ConfigurationError: there is no such strategy.
    """
    offered = own_options(name)

    def run(**parameters: Any) -> None:
        output = OutputSettings.of({one.made_from.name: parameters.pop(one.made_from.name) for one in OUTPUT})
        run_strategy(Request.of(name, parameters), output)

    about = STRATEGIES.summary(name) or f"Run an experiment over the strategy {name}."
    own = [*flags([Settings]), *map(Flagged, offered.offered("Strategy")), *OUTPUT, configuration()]
    return Command(name, params=own, help=about, callback=run)


OUTPUT = flags([OutputSettings])
"""The options that say where an experiment's results go."""


def run_strategy(request: Request, output: OutputSettings) -> None:
    """Run an experiment in the processes that a launcher started, or start them first; then present the results."""
    from bigbatch.experiments import api
    from bigbatch.experiments.commands.output import present, report, results_in
    from bigbatch.experiments.runs.table import verdict
    from bigbatch.experiments.training.conduct import conduct
    from bigbatch.experiments.training.launcher import become

    passed_on = [*(["--json"] if output.json else []), *(["--debug"] if "--debug" in sys.argv else [])]

    def start(command: list[str]) -> None:
        become([*command, *passed_on])

    run = conduct(request, output.out, quiet=output.quiet, start=start, failed=report, returns=False)
    if run is not None:
        with results_in(run.folder, named=not (output.json or output.quiet), failures=run.remarks) as results:
            results.show(lambda: present([run], run.summary, lambda: verdict(run.summary), output))
            api.draw([run], results)
