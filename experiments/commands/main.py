"""The program `bigbatch-exp`: a strategy's name runs an experiment over it, and other words are other commands."""

import sys
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from bigbatch.comm.errors import INTERRUPTED, BigBatchError, ConfigurationError, LaunchError
from bigbatch.comm.registry import unknown_name
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands import COMMANDS, subcommands
from bigbatch.experiments.commands.experiment import strategy_command
from bigbatch.experiments.commands.options import WIDTH


class Commands(click.Group):
    """Strategies by name, then the other commands; an unknown word is answered with the known ones.

    A command's module is imported when it is called, and a strategy's when it runs, so that help comes at once.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002 - click's signature
        """The command of that name, or the one of the strategy of that name.

        Raises:
            ConfigurationError: there is neither; says what there is.
        """
        if cmd_name in COMMANDS.names():
            command: click.Command = COMMANDS.load(cmd_name)
            return command
        if not STRATEGIES.known(cmd_name):
            words = [*STRATEGIES.names(), *COMMANDS.names()]
            raise unknown_name("strategy or command", cmd_name, words, "; or name your own strategy as FILE.py:Name")
        command = strategy_command(cmd_name)
        beside = subcommands(cmd_name)
        return StrategyGroup(command, beside) if beside else command

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Strategies, then commands."""
        return [*STRATEGIES.names(), *COMMANDS.names()]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command a line names; the word is kept as it was written."""
        name = args[0]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        return name, self.get_command(ctx, name), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's own signature
        """Two lists: strategies, commands."""
        for heading, registry in (("Strategies (or FILE.py:Name)", STRATEGIES), ("Commands", COMMANDS)):
            with formatter.section(heading):
                formatter.write_dl([(name, registry.summary(name)) for name in registry.names()], col_max=22)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The strategies and commands that begin so, with what they say of themselves."""
        found = [
            CompletionItem(name, help=registry.summary(name))
            for registry in (STRATEGIES, COMMANDS)
            for name in registry.names()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


class StrategyGroup(click.Group):
    """A strategy's command that has others below it, such as `ps serve`.

    Args:
        own: what runs if none of those is named.
        beside: those.
    """

    def __init__(self, own: click.Command, beside: dict[str, click.Command]) -> None:
        super().__init__(own.name, beside, invoke_without_command=True, params=own.params, help=own.help)
        self._own = own

    def invoke(self, ctx: click.Context) -> object:
        """The strategy itself, or the command that is named."""
        if ctx.args or ctx._protected_args:
            return super().invoke(ctx)
        return self._own.invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The strategy's options under their headings, then the commands below it."""
        self._own.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH})
@click.version_option(package_name="bigbatch")
def cli() -> None:
    """What does a bigger batch buy, and what does moving the gradients cost?

    Trains one Transformer in three arms that see the same tokens: a large batch, the same batch accumulated from
    smaller ones, and a small batch with more updates.

    \b
    mpirun -n 4 bigbatch-exp ring           four workers, ring all-reduce over MPI
    bigbatch-exp ring -n 4                  the same; starts mpirun itself
    bigbatch-exp compare ring allreduce ps  several strategies, one table
    """  # noqa: D301 - click's mark for a paragraph not to be refilled


def main() -> NoReturn:
    """The program: exits with 0, 1 for an error, 2 for a wrong command line, 130 for an interruption."""
    try:
        cli(standalone_mode=False)
        status = 0
    except click.ClickException as error:
        status = error.exit_code
        if speaks():
            error.show()
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except Exception as error:  # a fault of ours, or of a user's model, task or strategy, if not one of our own errors
        status = 2 if isinstance(error, ConfigurationError | LaunchError) else 1
        if speaks() or not isinstance(error, BigBatchError):
            from bigbatch.experiments.commands.output import report

            report(error)
    sys.exit(status)


def speaks() -> bool:
    """Whether this process is the one that reports what happened to all alike."""
    from bigbatch.comm.transports.launch import detect

    try:
        return detect().rank == 0
    except LaunchError:
        return True
