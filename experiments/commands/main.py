"""The program `bigbatch-exp`: a strategy's name runs an experiment over it, and other words name other commands."""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from bigbatch.comm.bounds import may_end_process
from bigbatch.comm.errors import (
    INTERRUPTED,
    BigBatchError,
    ConfigurationError,
    LaunchError,
    exit_status,
)
from bigbatch.comm.foreign import comes_of_interruption, end_program, explained
from bigbatch.comm.registry import unknown_name
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands import COMMANDS, subcommands
from bigbatch.experiments.commands.experiment import strategy_command
from bigbatch.experiments.commands.options import WIDTH
from bigbatch.experiments.commands.streams import standard_streams


class PastClick(Exception):  # noqa: N818 - it is no error itself
    """Carries an error past click, which would end without a word.

    It takes any EOFError for the user's Ctrl-D, and any BrokenPipeError for the end of whoever read our output.

    Args:
        error: the error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Commands(click.Group):
    """The group of all commands: strategies by name, then the other commands; an error on an unknown word lists them.

    A command's module is imported when the command is called, and a strategy's when it runs, so that --help is quick.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002 - click's signature
        """Loads the command of this name, or makes the command of the strategy of this name.

        Raises:
            ConfigurationError: there is neither; the message lists what there is.
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

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that is named; here, before click sees it, what a user's code raises becomes our error."""
        try:
            return super().invoke(ctx)
        except BaseException as raised:
            if (told := explained(raised)) is not None:
                raise told from raised
            if isinstance(raised, EOFError | BrokenPipeError):
                raise PastClick(raised) from raised
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Lists the names of all strategies, then of all other commands."""
        return [*STRATEGIES.names(), *COMMANDS.names()]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that the first word names, and keeps the word as it was written."""
        name = args[0]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        return name, self.get_command(ctx, name), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's own signature
        """Writes the help's two lists: strategies and commands, each with a summary."""
        for heading, registry in (("Strategies (or FILE.py:Name)", STRATEGIES), ("Commands", COMMANDS)):
            with formatter.section(heading):
                formatter.write_dl([(name, registry.summary(name)) for name in registry.names()], col_max=22)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Lists the strategies and commands whose names start with `incomplete`, with their summaries."""
        found = [
            CompletionItem(name, help=registry.summary(name))
            for registry in (STRATEGIES, COMMANDS)
            for name in registry.names()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


class StrategyGroup(click.Group):
    """A strategy's command that has subcommands, such as `ps serve`.

    Args:
        own: the strategy's own command, which runs if no subcommand is named.
        beside: the subcommands by name.
    """

    def __init__(self, own: click.Command, beside: dict[str, click.Command]) -> None:
        super().__init__(own.name, beside, invoke_without_command=True, params=own.params, help=own.help)
        self._own = own

    def invoke(self, ctx: click.Context) -> object:
        """Runs the subcommand that is named, or else the strategy's own command."""
        if ctx.args or ctx._protected_args:
            return super().invoke(ctx)
        return self._own.invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the strategy's options under their headings, then its subcommands."""
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
    """Runs the program in a process of its own, and ends that; see `run_program`."""
    may_end_process()
    os.environ.pop("MPLBACKEND", None)  # that of a notebook which started us may not be here; our figures need none
    end_program(run_program())


def run_program() -> int:
    """Runs the program with the arguments of this process, and returns the exit status.

    It is 0, 1 for an error, 2 for a wrong command line, 3 if the results are there but not all of them could be
    written, printed or drawn, 130 for an interruption, or 141 if nobody reads the output any more.
    """
    with standard_streams() as streams:
        status = _status()
        sys.stdout.flush()
        lost, sentence = streams.failure()
        if sentence:
            print(f"bigbatch-exp: {sentence}", file=sys.stderr, flush=True)
    return status or lost


def _status() -> int:
    """Runs the command, reports its error, and returns the exit status."""
    try:
        begin_to_watch()
        cli(standalone_mode=False)
        end_together()
    except click.ClickException as error:
        if speaks(error):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as raised:  # a fault of ours, if not one of our own errors
        if comes_of_interruption(raised):
            return INTERRUPTED
        fault = raised.error if isinstance(raised, PastClick) else raised
        if speaks(fault):
            from bigbatch.experiments.commands.output import report

            report(fault)
        return exit_status(fault)
    return 0


def begin_to_watch() -> None:
    """Have this rank be watched, and watch the others, before anything that takes long is loaded.

    Rank 0 tells the user what takes long, too.
    """
    from bigbatch.comm.transports.launch import detect
    from bigbatch.comm.wires.life import tell_what_takes_long

    with suppress(LaunchError):  # the command itself says what is wrong
        launch = detect()
        launch.watch()
        if launch.rank == 0 and "--quiet" not in sys.argv:
            tell_what_takes_long(lambda sentence: print(f"{sentence}.", file=sys.stderr, flush=True))


def end_together() -> None:
    """Have this rank wait at its end for the others', whose work goes well, too."""
    from bigbatch.comm.transports.watchdog import watchdog

    if (watching := watchdog()) is not None:
        watching.finished()


def speaks(error: Exception) -> bool:
    """Whether this process reports an error that ends it, so that each is reported once by a process that knows of it.

    Rank 0 speaks for all about what every rank knows. The first rank of each machine speaks about what it finds there
    by itself, such as an option or a file that is wrong; and every rank about its own wires, and about faults.
    """
    from bigbatch.comm.transports.launch import detect

    try:
        launch = detect()
    except LaunchError:
        return True
    if isinstance(error, BigBatchError) and error.everywhere:
        return launch.rank == 0
    if isinstance(error, ConfigurationError | LaunchError | click.ClickException):
        return launch.first_here
    return True
