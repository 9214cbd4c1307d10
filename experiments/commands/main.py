"""The command line: `bigbatch-exp STRATEGY`, and a few commands beside."""

import importlib
import json
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import click
import torch
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.errors import BigBatchError, ConfigurationError, LaunchError
from bigbatch.comm.options import Flag, Name, Number, Option, Whole, options_of
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.tracing.perfetto import read_trace
from bigbatch.comm.transports.launch import Launch, Launcher, detect
from bigbatch.comm.wires.agreement import together
from bigbatch.comm.wires.transport import DEFAULT_DEADLINE, Transport, consecutive_nodes
from bigbatch.experiments.measuring.bench import size_label
from bigbatch.experiments.measuring.wires import all_reduce_named
from bigbatch.experiments.runs.run import SUMMARY, Run, environment, make_folder, new_folder, trace_of, write_json
from bigbatch.experiments.runs.table import compared_verdict, print_table, setting, verdict
from bigbatch.experiments.training.compare import run_strategies
from bigbatch.experiments.training.experiment import Experiment
from bigbatch.experiments.training.launcher import become, launch_command
from bigbatch.experiments.training.progress import Reporter, terminal_columns
from bigbatch.experiments.training.settings import Settings, resolve_device
from bigbatch.experiments.training.simulated import CORE, NETWORK, Simulation, simulation_of
from bigbatch.training.batches import BatchPlan, derive_plan

INTERRUPTED = 130
"""The exit status of a program that was ended by Ctrl-C, as shells have it."""


class Count(click.ParamType[int]):
    """A number that may be written with a unit.

    Args:
        name: of what.
        units: unit -> how many it stands for.
        example: three ways to write the same, for the error.
    """

    def __init__(self, name: str, units: Mapping[str, int], example: str) -> None:
        self.name = name
        self._units = {unit.lower(): factor for unit, factor in units.items()}
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """300000, 300k, 0.3M -> 300000."""
        text = str(value).replace("_", "").replace(",", "").strip()
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        factor = self._units.get(text[len(digits) :].strip().lower())
        try:
            number = round(float(digits) * factor) if factor else 0
        except (ValueError, OverflowError):
            number = 0
        if number < 1:
            self.fail(f"{value!r} is not a number of {self.name}; write {self._example}", param, ctx)
        return number


TOKENS = Count("tokens", {"": 1, "k": 1_000, "M": 1_000_000}, "300000, 300k or 0.3M")
BYTES = Count(
    "bytes",
    {"": 1, "B": 1, "KB": 2**10, "KiB": 2**10, "MB": 2**20, "MiB": 2**20, "GB": 2**30, "GiB": 2**30},
    "262144, 256KB or 0.25MB (a KB has 1024 bytes)",
)


def read_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Take the options in a TOML file as defaults; what is on the command line goes before them."""
    if path is None:
        return None
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The configuration {path} is not TOML: {error}.") from error
    flags = {max(parameter.opts, key=len).lstrip("-"): str(parameter.name) for parameter in context.command.params}
    del flags["config"]
    defaults = {key.replace("_", "-"): value for key, value in entries.items()}
    for key in defaults:
        if key not in flags:
            names = ", ".join(sorted(flags))
            raise ConfigurationError(f"The configuration {path} has an unknown option {key!r}. Known: {names}.")
    context.default_map = {**(context.default_map or {}), **{flags[key]: value for key, value in defaults.items()}}
    return path


POSITIVE = click.IntRange(min=1)
POSITIVE_NUMBER = click.FloatRange(min=0, min_open=True)
FILE = click.Path(path_type=Path)

OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option("-n", "--workers", type=POSITIVE, help="Start that many workers (without mpirun or torchrun)."),
    click.option(
        "--task",
        default="language-modelling",
        show_default=True,
        help="What is learnt: language-modelling, documents (each by itself), FILE.py:Task.",
    ),
    click.option("--text", type=FILE, help="Your own text. [default: Python's standard library's documentation]"),
    click.option("--batch-size", type=POSITIVE, help="Global batch, in examples. [default: about 64]"),
    click.option("--micro-batch", type=POSITIVE, help="Examples a worker computes at once. [default: derived]"),
    click.option("--accumulate", type=POSITIVE, help="Micro-batches a worker adds up for an update. [default: 4]"),
    click.option("--arms", default="large,accumulated,small", show_default=True, help="What to compare."),
    click.option("--tokens", type=TOKENS, default="500k", show_default=True, help="To train each arm on."),
    click.option("--validation-tokens", type=TOKENS, default="8k", show_default=True, help="To measure the loss on."),
    click.option(
        "--target", type=POSITIVE_NUMBER, help="End an arm as soon as its validation loss is that low, in nats/token."
    ),
    click.option(
        "--learning-rate", type=POSITIVE_NUMBER, default=1e-3, show_default=True, help="Of every arm; its peak."
    ),
    click.option(
        "--optimizer",
        default="adamw",
        show_default=True,
        help="sgd, adam, adamw, lars, lamb, torch.optim:RMSprop, FILE.py:name.",
    ),
    click.option(
        "--schedule",
        default="constant",
        show_default=True,
        help="Of the learning rate: constant, linear, cosine, noam, wsd, FILE.py:name.",
    ),
    click.option("--warmup", type=click.IntRange(min=0), default=0, show_default=True, help="Updates of rising rate."),
    click.option(
        "--scaling", default="none", show_default=True, help="Of the rate with the global batch: none, linear, sqrt."
    ),
    click.option("--base-batch", type=POSITIVE, help="Global batch that --learning-rate is meant for. [default: 64]"),
    click.option("--clip", type=POSITIVE_NUMBER, help="Shorten longer gradients to this norm. [default: none]"),
    click.option("--layers", type=POSITIVE, default=2, show_default=True, help="Blocks of the Transformer."),
    click.option("--width", type=POSITIVE, default=96, show_default=True, help="Length of a token's vector."),
    click.option("--heads", type=POSITIVE, default=4, show_default=True, help="Attention heads."),
    click.option("--context", type=POSITIVE, default=64, show_default=True, help="Tokens in an example."),
    click.option("--vocabulary", type=POSITIVE, default=1024, show_default=True, help="Different tokens, at most."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and order."),
    click.option("--bucket-size", type=BYTES, default="25MB", show_default=True, help="Gradients sent as one, about."),
    click.option("--overlap/--no-overlap", default=True, show_default=True, help="Send while backward still runs."),
    click.option("--node-size", type=POSITIVE, help="Ranks to treat as one machine. [default: those that are]"),
    click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Of torch, in every process."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--deadline", type=POSITIVE_NUMBER, default=DEFAULT_DEADLINE, show_default=True, help="Seconds to wait at most."
    ),
    click.option("--noise-scale", is_flag=True, help="Measure the gradient noise scale of every arm."),
    click.option("--trace", is_flag=True, help="Write trace.json: what every rank does when; see `timeline`."),
    click.option(
        "--trace-updates", type=POSITIVE, default=20, show_default=True, help="Traced of each arm, from its first."
    ),
    click.option("--out", type=FILE, help="The run's folder. [default: a new one below ./runs]"),
    click.option("--config", type=FILE, is_eager=True, callback=read_config, help="Options from a TOML file."),
    click.option("--quiet", is_flag=True, help="Neither progress nor table."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and no table."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


SIMULATION_OPTIONS = (
    click.option("--simulate", type=POSITIVE, help="Simulate that many workers, in this process, in simulated time."),
    click.option("--network", default=NETWORK, show_default=True, help="Simulated: a preset's name or FILE.toml."),
    click.option(
        "--straggler",
        default="none",
        show_default=True,
        help="Simulated: exponential:0.3, lognormal:0.3, slow:RANK:FACTOR, fail:RANK:SECONDS; or several, with commas.",
    ),
    click.option("--gpu", default=CORE, show_default=True, help="Simulated: core, measured, a100, h100 ..."),
)
"""Beside `OPTIONS`; all but the first need it."""


def experiment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options every experiment has."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def simulation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of experiments that can be simulated."""
    for option in reversed(SIMULATION_OPTIONS):
        command = option(command)
    return command


ELSEWHERE = {
    "simulate": "bigbatch.experiments.commands.simulate",
    "plan": "bigbatch.experiments.commands.plan",
    "calibrate": "bigbatch.experiments.commands.calibrate",
    "validate": "bigbatch.experiments.commands.calibrate",
    "figures": "bigbatch.experiments.commands.figure",
    "figure": "bigbatch.experiments.commands.figure",
    "plot": "bigbatch.experiments.commands.report",
    "report": "bigbatch.experiments.commands.report",
}
"""Command -> the module that has it in its COMMANDS, which takes its kinds of options from here."""


class Commands(click.Group):
    """Strategies by name, then the other commands; an unknown word is answered with the known ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, or the strategy of that name."""
        return super().get_command(ctx, cmd_name) or self.load(cmd_name) or strategy_command(cmd_name)

    @staticmethod
    def load(name: str) -> Any:
        """A command that lives in a module of its own; None if there is none of that name."""
        return importlib.import_module(ELSEWHERE[name]).COMMANDS[name] if name in ELSEWHERE else None

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
        with formatter.section("Strategies (or FILE.py:Name)"):
            formatter.write_dl([(name, strategy_command(name).get_short_help_str(90)) for name in STRATEGIES.names()])
        with formatter.section("Commands"):
            everything = {**self.commands, **{name: self.load(name) for name in ELSEWHERE}}
            formatter.write_dl([(name, c.get_short_help_str(90)) for name, c in sorted(everything.items())])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="bigbatch")
def cli() -> None:
    """What does a bigger batch buy, and what does moving the gradients cost?

    Trains one Transformer in three arms that see the same tokens: a large batch, the same batch accumulated from
    smaller ones, and a small batch with more updates.

    \b
    mpirun -n 4 bigbatch-exp ring            four workers, ring all-reduce over MPI
    bigbatch-exp ring -n 4                   the same; starts mpirun itself
    bigbatch-exp compare ring allreduce ps   several strategies, one table
    """  # noqa: D301 - click's mark for a paragraph not to be refilled


def strategy_command(name: str) -> click.Command:
    """The command that runs an experiment over a strategy."""
    strategy: type[Strategy] = STRATEGIES.load(name)
    summary = (strategy.__doc__ or "").strip() or f"The strategy {name}."

    @click.command(name, help=summary.partition("\n\n")[0])
    @experiment_options
    @simulation_options
    def command(**options: Any) -> None:
        choices = {option.name: options.pop(option.name) for option in offered_by(strategy)}
        run_strategy(name, strategy.configured(choices), choices, options)

    command.params += [as_click(option) for option in offered_by(strategy)]
    beside = importlib.import_module(BESIDE[name]).COMMANDS if name in BESIDE else {}
    return StrategyGroup(command, beside) if beside else command


BESIDE = {"ps": "bigbatch.experiments.commands.servers"}
"""Strategy -> the module with the commands below its name, such as `ps serve`; it takes its options from here."""


class StrategyGroup(click.Group):
    """A strategy's command that has others below it.

    Args:
        own: what runs if none of those is named.
        beside: those.
    """

    def __init__(self, own: click.Command, beside: dict[str, click.Command]) -> None:
        super().__init__(own.name, beside, invoke_without_command=True, params=own.params, help=own.help)
        self._own = own

    def invoke(self, ctx: click.Context) -> Any:
        """The strategy itself, or the command that is named."""
        if ctx.args or ctx._protected_args:
            return super().invoke(ctx)
        return self._own.invoke(ctx)


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """The options of a strategy's command line, by default or as its words have them.

    Raises:
        click.ClickException: they are no such command line.
    """
    return strategy_command(words[0]).make_context(words[0], list(words[1:])).params


def offered_by(strategy: type[Strategy]) -> list[Option]:
    """The options of a strategy, each with the value that it has unless somebody chooses another."""
    values = strategy.options.flat()
    return [replace(option, default=values[option.name]) for option in options_of(type(strategy.options))]


def as_click(option: Option) -> click.Option:
    """A strategy's option, on the command line."""
    flag, kind = option.flag, option.kind
    if isinstance(kind, Flag):
        flags = f"{flag}/--no-{flag[2:]}" if option.default else flag
        return click.Option([flags], is_flag=True, default=option.default, show_default=True, help=option.help)
    taken: Any = click.STRING
    if isinstance(kind, Name) and not kind.others:
        taken = click.Choice(kind.names())
    elif isinstance(kind, Whole):
        taken = click.IntRange(min=kind.least)
    elif isinstance(kind, Number):
        taken = click.FLOAT
    return click.Option([flag], type=taken, default=option.default, show_default=True, help=option.help)


def run_strategy(name: str, strategy: type[Strategy], choices: dict[str, Any], options: dict[str, Any]) -> None:
    """Run an experiment in the processes there are, or start them first."""
    settings, launch = settings_of(options), detect()
    simulation = simulation_in(options, settings, launch)
    if simulation is not None:
        simulate_strategy(name, strategy, choices, options, settings, simulation)
        return
    started = None if launch.launcher is Launcher.NONE else strategy.workers_among(launch.size)
    plan = plan_of(options, started)
    settings.check(plan, name, strategy)
    if launch.launcher is Launcher.NONE and strategy.ranks_for(plan.workers) > 1:
        become(launch_command(strategy, plan.workers, sys.argv[1:]))
    device = resolve_device(settings.device, launch)
    silent = options["quiet"] or launch.rank != 0
    folder = options["out"] or new_folder(f"{Path(name).name.replace(':', '-')}-{plan.workers}")
    experiment = Experiment(name, strategy, choices, settings, plan, device, folder, Reporter(quiet=silent))
    with connected(lambda: strategy.connect(launch, str(device), settings.deadline), options["debug"]) as transport:
        experiment.run(transport)
        if transport.rank == 0:
            finished = Run.read(folder)
            present([finished], folder, finished.summary, verdict(finished.summary), options)


def simulation_in(options: dict[str, Any], settings: Settings, launch: Launch) -> Simulation | None:
    """The simulation that a command's options ask for, if they do.

    Raises:
        ConfigurationError: only half of one, or one for another number of workers.
        LaunchError: in processes that a launcher started.
    """
    context = click.get_current_context()
    workers = options["simulate"]
    if workers is None:
        for name in ("network", "straggler", "gpu"):
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise ConfigurationError(f"--{name} says what is simulated: add --simulate WORKERS, or leave it out.")
        return None
    if launch.launcher is not Launcher.NONE:
        raise LaunchError("--simulate runs all ranks in one process: run it without mpirun or torchrun.")
    if options["workers"] not in (None, workers):
        raise ConfigurationError(
            f"-n asks for {options['workers']} workers, --simulate for {workers}. Leave -n out: there are no processes "
            "to start."
        )
    return simulation_as(options, settings)


def simulation_as(options: dict[str, Any], settings: Settings) -> Simulation:
    """The simulation that a command's options describe.

    Raises:
        ConfigurationError: an unknown name, or a bad file.
    """
    return simulation_of(
        options["simulate"],
        options["network"],
        options["straggler"],
        options["gpu"],
        settings.node_size,
        settings.seed,
    )


def run_quietly(words: Sequence[str], folder: Path) -> None:
    """Run an experiment of one process, of which only the run's folder is left.

    Args:
        words: its command line, from the strategy's name on.
        folder: of the run.

    Raises:
        BigBatchError: it cannot be run.
        click.ClickException: it is no such command line.
    """
    name = words[0]
    options = {**parsed(words), "out": folder, "quiet": True}
    strategy: type[Strategy] = STRATEGIES.load(name)
    choices = {option.name: options.pop(option.name) for option in offered_by(strategy)}
    strategy = strategy.configured(choices)
    settings = settings_of(options)
    if options["simulate"] is not None:
        run_simulated(name, strategy, choices, options, settings, simulation_as(options, settings))
        return
    plan, launch, reporter = plan_of(options, None), Launch(Launcher.NONE), Reporter(quiet=True)
    settings.check(plan, name, strategy)
    device = resolve_device(settings.device, launch)
    transport = strategy.connect(launch, str(device), settings.deadline)
    try:
        Experiment(name, strategy, choices, settings, plan, device, folder, reporter).run(transport)
    finally:
        transport.close()


def simulate_strategy(
    name: str,
    strategy: type[Strategy],
    choices: dict[str, Any],
    options: dict[str, Any],
    settings: Settings,
    simulation: Simulation,
) -> None:
    """Run an experiment on simulated ranks, in this process."""
    folder = options["out"] or new_folder(f"{Path(name).name.replace(':', '-')}-simulated-{simulation.workers}")
    run_simulated(name, strategy, choices, {**options, "out": folder}, settings, simulation)
    finished = Run.read(folder)
    present([finished], folder, finished.summary, verdict(finished.summary), options)


def run_simulated(
    name: str,
    strategy: type[Strategy],
    choices: dict[str, Any],
    options: dict[str, Any],
    settings: Settings,
    simulation: Simulation,
) -> None:
    """The same, of which only the run's folder is left; the options say which that is."""
    plan = plan_of({**options, "workers": simulation.workers}, None)
    settings.check(plan, name, strategy)

    def work(transport: Transport) -> None:
        reporter = Reporter(quiet=options["quiet"] or transport.rank != 0)
        folder, device = options["out"], torch.device("cpu")
        Experiment(name, strategy, choices, settings, plan, device, folder, reporter, simulation).run(transport)

    simulation.run(strategy.ranks_for(plan.workers), work, settings.deadline)


def settings_of(options: dict[str, Any]) -> Settings:
    """The settings among a command's options."""
    return Settings(**{field.name: options[field.name] for field in fields(Settings)})


def plan_of(options: dict[str, Any], started: int | None) -> BatchPlan:
    """The plan of the accumulated arm; `started` is the number of workers that a launcher started, if one did."""
    asked = options["workers"]
    if started is not None and asked is not None and asked != started:
        raise ConfigurationError(
            f"-n asks for {asked} workers, but the launcher started {started}. Leave -n out, or start them without it."
        )
    workers = started if started is not None else asked
    return derive_plan(workers, options["batch_size"], options["micro_batch"], options["accumulate"])


@contextmanager
def connected(connect: Callable[[], Transport], debug: bool) -> Iterator[Transport]:
    """The transport while the work goes well; an error that only this rank knows of ends the whole job.

    An error on every rank is raised, for rank 0 to report.
    """
    transport = connect()
    try:
        yield transport
    except BigBatchError as error:
        if not error.everywhere and transport.size > 1:
            report(error, debug)
            transport.abort(1)
        transport.close()
        raise
    except KeyboardInterrupt:
        if transport.rank == 0:
            print("Interrupted; what was measured so far is in the run's folder.", file=sys.stderr, flush=True)
        transport.abort(INTERRUPTED)
    except Exception as error:  # a fault of ours, or of a user's model, task or strategy
        report(error, debug, rank=transport.rank if transport.size > 1 else None)
        transport.abort(1)
    transport.close()


def report(error: Exception, debug: bool, rank: int | None = None) -> None:
    """One sentence on standard error; the traceback before it if asked for."""
    if debug:
        traceback.print_exception(error)
    where = "" if rank is None else f"on rank {rank}: "
    what = str(error) if isinstance(error, BigBatchError) else f"{type(error).__name__}: {error}"
    hint = "" if debug or isinstance(error, BigBatchError) else " (--debug shows where)"
    print(f"bigbatch-exp: {where}{what}{hint}", file=sys.stderr, flush=True)


def present(runs: Sequence[Run], folder: Path, summary: dict[str, Any], sentence: str, options: dict[str, Any]) -> None:
    """The figure, and then the table or the summary on standard output."""
    from bigbatch.experiments.figures.comparison import draw_comparison  # only the rank that draws needs matplotlib
    from bigbatch.experiments.figures.staleness import draw_staleness, has_staleness

    draw_comparison(runs, folder / "comparison.png")
    if any(has_staleness(run) for run in runs):
        draw_staleness(runs, folder / "staleness.png")
    if options["as_json"]:
        print(json.dumps(summary, indent=2))
    elif not options["quiet"]:
        print()
        print_table(console(), [run.summary for run in runs])
        console().print(f"\n{sentence}")
        if setting(runs[0].summary):
            console().print(f"\n{setting(runs[0].summary)}")
        print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


COLUMNS = 100
"""The width of what is printed where there is no terminal to ask."""


def console() -> Console:
    """Standard output, as wide as the terminal behind it."""
    return Console(width=terminal_columns(sys.stdout) or COLUMNS, highlight=False)


@cli.command()
@click.argument("strategies", nargs=-1, required=True)
@experiment_options
@simulation_options
@click.pass_context
def compare(context: click.Context, /, strategies: tuple[str, ...], **options: Any) -> None:
    """Run several strategies with as many workers each; one table and one figure over all."""
    if detect().launcher is not Launcher.NONE:
        raise LaunchError("compare starts the processes of every strategy itself: run it without mpirun or torchrun.")
    settings = settings_of(options)
    simulated = simulation_in(options, settings, Launch(Launcher.NONE)) is not None
    asked = (
        options["simulate"]
        or options["workers"]
        or (None if options["micro_batch"] and options["accumulate"] else WORKERS_COMPARED)
    )
    plan = plan_of({**options, "workers": asked}, None)
    for name in strategies:
        settings.check(plan, name, STRATEGIES.load(name))
    folder = options["out"] or new_folder("compare")
    runs = run_strategies(strategies, plan.workers, shared_arguments(context), folder, simulated=simulated)
    summaries = [run.summary for run in runs]
    write_json(folder / SUMMARY, {"runs": summaries})
    present(runs, folder, {"runs": summaries}, compared_verdict(summaries), options)


WORKERS_COMPARED = 4
"""How many workers each strategy gets in `compare` if nothing else is said."""


def shared_arguments(context: click.Context) -> list[str]:
    """The options that were given on the command line, as `compare` hands them on."""
    own = {"strategies", "workers", "out", "as_json"}
    arguments: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in own or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(value, bool):
            arguments.append((parameter.opts if value else parameter.secondary_opts)[-1])
        else:
            arguments += [parameter.opts[-1], str(value)]
    return arguments


class Sizes(click.ParamType[tuple[int, ...]]):
    """Several sizes, separated by commas."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """4KB,1MB -> (4096, 1048576)."""
        if isinstance(value, tuple):
            return value
        return tuple(BYTES.convert(word, param, ctx) for word in str(value).split(","))


class Numbers(click.ParamType[tuple[int, ...]]):
    """Several whole numbers from 1, separated by commas, in ascending order and each once."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """2,1 -> (1, 2)."""
        if isinstance(value, tuple):
            return value
        return tuple(sorted({int(POSITIVE(word, param, ctx)) for word in str(value).split(",")}))


LAUNCH_OPTIONS = (
    click.option("-n", "--workers", type=POSITIVE, help="Start that many ranks (without mpirun)."),
    click.option("--node-size", type=POSITIVE, help="Ranks to treat as one machine. [default: those that are]"),
    click.option(
        "--deadline", type=POSITIVE_NUMBER, default=DEFAULT_DEADLINE, show_default=True, help="Seconds to wait at most."
    ),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


def launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that measure on several ranks."""
    for option in reversed(LAUNCH_OPTIONS):
        command = option(command)
    return command


@contextmanager
def ranks_of(options: dict[str, Any], servers: int = 0) -> Iterator[tuple[Transport, Launch]]:
    """The wires between the ranks that a launcher started; without a launcher, become one, with that many more."""
    launch = detect()
    ranks = (options["workers"] or RANKS_MEASURED) + servers
    if launch.launcher is Launcher.NONE and ranks > 1:
        become(launch_command(STRATEGIES.load("ring"), ranks, sys.argv[1:]))
    with connected(lambda: AllReduce.connect(launch, "cpu", options["deadline"]), options["debug"]) as transport:
        if options["node_size"]:
            together(transport, lambda: transport.arrange(options["node_size"]))
        yield transport, launch


RANKS_MEASURED = 2
"""How many ranks bench and tune start if nothing else is said."""


@cli.command()
@click.option(
    "--bytes", "sizes", type=Sizes(), default="4KB,256KB,4MB,32MB", show_default=True, help="Sizes of the buffers."
)
@click.option("--algorithms", default="", help="Names, separated by commas. [default: all that can run]")
@click.option("--servers", type=Numbers(), default=(), help="Sync updates through so many servers too, as in 1,2.")
@click.option("--seconds", type=POSITIVE_NUMBER, default=2.0, show_default=True, help="To spend on each size, about.")
@click.option("--out", type=FILE, help="The bench's folder. [default: a new one below ./runs]")
@click.option("--json", "as_rows", is_flag=True, help="Print the rows as JSON and no table.")
@launch_options
def bench(
    sizes: tuple[int, ...],
    algorithms: str,
    servers: tuple[int, ...],
    seconds: float,
    out: Path | None,
    as_rows: bool,
    **options: Any,
) -> None:
    """Compare all-reduces: time, algbw and busbw by algorithm and size, with exact checks and a figure.

    With --servers, the last ranks are parameter servers; -n counts the others.
    """
    from bigbatch.experiments.measuring.bench import Bench, as_json, print_bench

    names = [name.strip() for name in algorithms.split(",") if name.strip()]
    for name in names:
        all_reduce_named(name)
    with ranks_of(options, max(servers, default=0)) as (transport, launch):
        speaking = transport.rank == 0
        compared = Bench(transport, launch, names, servers)
        folder = out or new_folder(f"bench-{transport.size}")
        together(transport, lambda: make_folder(folder) if speaking else None)
        summary: dict[str, Any] = {"rows": [], "memory": [], "skipped": compared.skipped}
        if servers:
            summary |= {"ports": [], "overhead_seconds": compared.overhead(seconds)}
        for size in sizes:
            told(speaking)(f"{size_label(size)} ...")
            block = compared.run(size, seconds)
            summary["rows"] += block.as_json()
            summary["memory"].append(as_json(block.memory))
            if block.port is not None:
                summary["ports"].append(as_json(block.port))
        if speaking:
            from bigbatch.experiments.figures.bandwidth import draw_bench

            write_json(folder / SUMMARY, {**summary, "environment": environment()})
            draw_bench(summary["rows"], summary["memory"], folder / "bench.png")
            if as_rows:
                print(json.dumps(summary["rows"], indent=2), flush=True)
            else:
                limits = summary["memory"], summary.get("ports", ()), summary.get("overhead_seconds")
                print_bench(console(), summary["rows"], *limits)
                for name, reason in compared.skipped.items():
                    print(f"left out: {name}: {reason}")
                print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)
        compared.close()


@cli.command()
@click.argument("strategies", nargs=-1)
@click.option("--micro-batch", type=POSITIVE, default=2, show_default=True, help="Examples a rank computes at once.")
@click.option("--context", type=POSITIVE, default=64, show_default=True, help="Tokens in an example.")
@click.option("--turns", type=POSITIVE, default=12, show_default=True, help="Of every contestant, ten updates each.")
@click.option("--json", "as_rows", is_flag=True, help="Print the rows as JSON and no table.")
@launch_options
def race(
    strategies: tuple[str, ...], micro_batch: int, context: int, turns: int, as_rows: bool, **options: Any
) -> None:
    """Train 4 million parameters in turns: over strategies (shared), over torch's own way, and without exchange."""
    from bigbatch.experiments.measuring.race import print_race
    from bigbatch.experiments.measuring.race import race as run_race

    names = strategies or ("shared",)
    for name in names:
        all_reduce_named(name)
    with ranks_of(options) as (transport, launch):
        speaking = transport.rank == 0
        rows = run_race(transport, launch, names, micro_batch, context, turns, told(speaking))
        if speaking and as_rows:
            print(json.dumps(rows, indent=2), flush=True)
        elif speaking:
            print_race(console(), rows)


@cli.command()
@click.option("--out", type=FILE, help="The folder of the measurements. [default: a new one below ./runs]")
def targets(out: Path | None) -> None:
    """Measure how fast the wires are, and hold that against what they are meant to reach."""
    from bigbatch.experiments.measuring.targets import measure_all, print_targets

    if detect().launcher is not Launcher.NONE:
        raise LaunchError("targets starts the processes that it measures itself: run it without mpirun or torchrun.")
    folder = out or new_folder("targets")
    make_folder(folder)
    reached = measure_all(folder)
    write_json(folder / SUMMARY, {"targets": reached, "environment": environment()})
    print_targets(console(), reached)
    print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


def told(speaking: bool) -> Callable[[str], None]:
    """Says how far a measurement is, on standard error and on one rank."""
    return (lambda text: print(text, file=sys.stderr, flush=True)) if speaking else (lambda _: None)


@cli.command()
@click.argument("name")
@click.option("-n", "--ranks", type=POSITIVE, default=4, show_default=True, help="Number of ranks.")
@click.option("--bytes", "nbytes", type=BYTES, default="1MB", show_default=True, help="Size of the buffer.")
@click.option("--node-size", type=POSITIVE, help="Ranks on a machine, for hierarchical. [default: all]")
@click.option("--proof", is_flag=True, help="Print how every contribution arrives, once, at every rank.")
@click.option("--account", is_flag=True, help="Print messages and bytes of every rank.")
@click.option("--gif", is_flag=True, help="Animate the rounds, chunk by chunk.")
@click.option("--out", type=FILE, help="A folder for the figures. [default: runs/show-NAME-RANKS]")
def show(
    name: str, ranks: int, nbytes: int, node_size: int | None, proof: bool, account: bool, gif: bool, out: Path | None
) -> None:
    """Print and draw an algorithm's rounds: a registered one, or FILE.py:function."""
    from bigbatch.experiments.figures.rounds import animate_rounds, draw_rounds
    from bigbatch.experiments.figures.shown import Shown

    nodes = consecutive_nodes(ranks, node_size or ranks)
    shown = Shown(name.rpartition(":")[2], bind(ALGORITHMS.load(name), nbytes, nodes), ranks)
    folder = out or Path("runs") / f"show-{shown.name}-{ranks}"
    make_folder(folder)
    draw_rounds(shown, folder / "rounds.png")
    if gif:
        animate_rounds(shown, folder / "rounds.gif")
    lines = [*(shown.proof_text() if proof else ()), *(shown.account_text(nbytes) if account else ())]
    print("\n".join(lines or shown.text()), flush=True)
    print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)
    if not shown.proof.holds:
        raise BigBatchError(f"{name} over {ranks} ranks is no all-reduce: {shown.proof}.")


class Range(click.ParamType[tuple[int, int]]):
    """A range of whole numbers from 1."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """2..4 -> (2, 4); 3 -> (3, 3)."""
        if isinstance(value, tuple):
            return value
        first, _, last = str(value).partition("..")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            self.fail(f"{value!r} is no range; write 3 for the third, or 2..4 for the second to the fourth", param, ctx)
        return int(first), int(last)


@cli.command()
@click.argument("run", type=FILE)
@click.option("--arm", help="Which arm's updates. [default: the first arm]")
@click.option("--updates", type=Range(), help="Which updates, as in 2..4. [default: the second]")
@click.option("--from", "first", type=float, help="Instead: from that time on, in seconds of the trace ...")
@click.option("--to", "stop", type=float, help="... to that time.")
@click.option("--out", type=FILE, help="The figure. [default: timeline.png in the run's folder]")
def timeline(
    run: Path,
    arm: str | None,
    updates: tuple[int, int] | None,
    first: float | None,
    stop: float | None,
    out: Path | None,
) -> None:
    """Draw what every rank did when, from the trace of a run that had --trace: a folder, or a trace.json."""
    from bigbatch.experiments.figures.timeline import draw_timeline, range_of_updates

    timed = first is not None or stop is not None
    if timed and (arm or updates):
        raise ConfigurationError("--from and --to choose a range of time, --arm and --updates one of updates: use one.")
    if out is not None and out.suffix.lower() not in ("", ".png"):
        raise ConfigurationError(f"The figure {out} would be a PNG all the same. Name a file that ends in .png.")
    path = trace_of(run)
    ranks = read_trace(path)
    if not timed:
        first, stop = range_of_updates(ranks, arm, updates)
    target = out or path.with_name("timeline.png")
    make_folder(target.parent)
    try:
        draw_timeline(ranks, target, path.parent.resolve().name, first, stop)
    except OSError as error:
        raise ConfigurationError(f"The figure {target} cannot be written: {error.strerror}.") from error
    print(target, flush=True)


@cli.command()
@launch_options
def tune(**options: Any) -> None:
    """Measure which all-reduce is the fastest here, and keep the table for `auto`."""
    from bigbatch.comm.reducers.tuning import tune as measure_all
    from bigbatch.comm.strategies.auto import candidates

    with ranks_of(options) as (transport, _):
        speaking = transport.rank == 0
        tuning = measure_all(
            candidates(transport),
            transport,
            told(speaking),
        )
        if speaking:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for head in ("size", "fastest", "ms", "then"):
                table.add_column(head)
            for size, times in tuning.seconds.items():
                first, *others = tuning.ranking(size)
                then = ", ".join(f"{name} {times[name] / times[first]:.2f} ×" for name in others[:3])
                table.add_row(size_label(size), first, f"{1e3 * times[first]:.3f}", then)
            console().print(table)
            print(f"\nKept for {tuning.layout} in {cache_folder()}; auto uses it.", flush=True)


@cli.command()
def doctor() -> None:
    """Say what this machine has (MPI, torch, cores, GPUs) and what to install for what is missing."""
    from bigbatch.experiments.measuring.doctor import examine

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, found, advice in examine():
        table.add_row(what, escape(found + (f"\n-> {advice}" if advice else "")))
    console().print(table)


def main() -> NoReturn:
    """The program: exits with 0, 1 for an error, 2 for a wrong command line, 130 for an interruption."""
    debug = "--debug" in sys.argv
    try:
        cli(standalone_mode=False)
        status = 0
    except click.ClickException as error:
        status = error.exit_code
        if speaks():
            error.show()
    except BigBatchError as error:
        status = 2 if isinstance(error, ConfigurationError | LaunchError) else 1
        if speaks():
            report(error, debug)
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    sys.exit(status)


def speaks() -> bool:
    """Whether this process is the one that reports what happened to all alike."""
    try:
        return detect().rank == 0
    except LaunchError:
        return True
