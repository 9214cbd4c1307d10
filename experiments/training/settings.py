"""What a user can ask of an experiment: every option, with its default, its unit and a sentence.

A new option is one field here (or in the settings of the data or the model, or in the options of a strategy), and the
code that uses it. Nothing here imports torch: a command line that is only looked at must answer at once.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.options import (
    BYTES,
    Flag,
    Name,
    Number,
    Options,
    Several,
    Text,
    Whole,
    option,
    options_of,
    unknown_option,
)
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.models.settings import ModelSettings
from bigbatch.optimizers import OPTIMIZERS, SCALING_RULES, SCHEDULES
from bigbatch.tasks.settings import DataSettings
from bigbatch.training.batches import ARMS, DEFAULT_ACCUMULATION, DEFAULT_BATCH, Arm, BatchPlan, arms_of, derive_plan

UNSCALED = "none"
"""The scaling rule that leaves every rate as it is."""

NETWORK = "ethernet-10g"
"""The network that is simulated if none is named."""

CORE, MEASURED = "core", "measured"
"""What simulated workers compute on besides GPUs: a laptop's core, or what this machine is measured to do."""


def networks() -> list[str]:
    """The names of networks that are described here."""
    from bigbatch.comm.simulation.presets import NETWORKS, THIS_MACHINE

    return [*NETWORKS, THIS_MACHINE]


def gpus() -> list[str]:
    """The names of what a worker can compute on."""
    from bigbatch.comm.simulation.computing import GPUS

    return [CORE, MEASURED, *GPUS]


@dataclass(frozen=True)
class BatchSettings(Options):
    """How a batch is divided, and which arms are compared.

    global batch = micro-batch × accumulation × workers; what is not given follows from the rest.

    Attributes:
        workers: how many train; None for as many as a launcher started.
        batch_size: examples behind an update.
        micro_batch: examples that a worker computes at once.
        accumulate: micro-batches whose gradients a worker adds up for an update, in the arm `accumulated`.
        arms: which arms are run, in order.
        seed: seed for the initial weights and the order of the examples.
    """

    title: ClassVar[str] = "Batch and arms"

    workers: int | None = option(
        None, Whole(most=100_000), "Number of workers to start, without mpirun or torchrun.", missing="1", short="-n"
    )
    batch_size: int | None = option(
        None, Whole(), "Global batch of an update, in examples.", missing=f"about {DEFAULT_BATCH}"
    )
    micro_batch: int | None = option(
        None, Whole(), "Examples that a worker computes at once.", missing="what the batch size leaves"
    )
    accumulate: int | None = option(
        None,
        Whole(),
        "Micro-batches whose gradients a worker adds up for one update.",
        missing=str(DEFAULT_ACCUMULATION),
    )
    arms: tuple[str, ...] = option(ARMS, Several(Name(lambda: ARMS)), "Arms to run, in this order.")
    seed: int = option(0, Whole(least=0), "Seed for the initial weights and the order of the examples.")

    def plan(self, workers: int | None = None) -> BatchPlan:
        """The plan of the accumulated arm.

        Args:
            workers: how many a launcher started, if one did.

        Raises:
            ConfigurationError: the numbers contradict each other, or do not divide; names the nearest that do.
        """
        if workers is not None and self.workers not in (None, workers):
            raise ConfigurationError(
                f"-n asks for {self.workers} workers, but the launcher started {workers}. Leave -n out, or start them "
                "without it."
            )
        return derive_plan(workers or self.workers, self.batch_size, self.micro_batch, self.accumulate)

    def chosen_arms(self, plan: BatchPlan) -> list[Arm]:
        """The arms asked for, in the order asked for."""
        known = arms_of(plan)
        return [known[name] for name in self.arms]


@dataclass(frozen=True)
class UpdateSettings(Options):
    """How summed gradients become an update.

    Attributes:
        learning_rate: the peak rate, the same for every arm but for what `scaling` makes of it.
        optimizer: a name in the registry of optimisers, "torch.optim:CLASS", or FILE.py:name.
        schedule: a name in the registry of schedules, or FILE.py:name.
        warmup: updates in which the rate rises.
        scaling: a name in the registry of scaling rules, or FILE.py:name.
        base_batch: examples behind an update for which the rate is meant, or None for 64.
        clip: the norm of the longest gradient, or None for any.
    """

    title: ClassVar[str] = "Update"

    learning_rate: float = option(1e-3, Number(above=0), "Peak learning rate, the same for every arm.")
    optimizer: str = option(
        "adamw", Name(OPTIMIZERS.names, "torch.optim:CLASS or FILE.py:name"), "Optimiser that makes the updates."
    )
    schedule: str = option(
        "constant", Name(SCHEDULES.names, "FILE.py:name"), "How the learning rate goes from update to update."
    )
    warmup: int = option(0, Whole(least=0), "Updates in which the learning rate rises to its peak.")
    scaling: str = option(
        UNSCALED, Name(SCALING_RULES.names, "FILE.py:name"), "How the learning rate grows with the global batch."
    )
    base_batch: int | None = option(
        None, Whole(), "Global batch for which --learning-rate is meant.", missing=str(DEFAULT_BATCH)
    )
    clip: float | None = option(
        None, Number(above=0), "Norm to which longer gradients are shortened.", missing="no limit"
    )


@dataclass(frozen=True)
class WireSettings(Options):
    """How gradients travel.

    Attributes:
        bucket_size: bytes of gradients that are sent as one; see `FlatParameters.buckets`.
        overlap: whether buckets are sent while backward still runs.
        node_size: ranks to treat as one machine, or None for those that are.
        deadline: seconds after which a wait gives up.
    """

    title: ClassVar[str] = "Wires"

    bucket_size: int = option(25 * 2**20, BYTES, "Target size of a gradient bucket.")
    overlap: bool = option(True, Flag(), "Send gradient buckets while backward still runs.")
    node_size: int | None = option(
        None, Whole(), "Number of ranks to treat as one machine.", missing="those that share one"
    )
    deadline: float = option(
        DEFAULT_DEADLINE, Number(above=0), "Seconds that a rank waits for another before it gives up."
    )


@dataclass(frozen=True)
class MachineSettings(Options):
    """What every process computes on.

    Attributes:
        threads: of torch, in every process.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    title: ClassVar[str] = "Machine"

    threads: int = option(1, Whole(most=1024), "Threads that torch uses in every process.")
    device: str = option("auto", Text("DEVICE"), "Device to compute on: auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class ObservationSettings(Options):
    """What is measured and recorded on the way.

    Attributes:
        target: the validation loss, in nats per token, with which an arm ends; None to train on all tokens.
        noise_scale: whether to measure the gradient noise scale.
        trace: whether to record what every rank does when ...
        trace_updates: ... in the first updates of each arm, as many as this.
    """

    title: ClassVar[str] = "Observation"

    target: float | None = option(
        None,
        Number(above=0),
        "Validation loss, in nats per token, at which an arm ends early.",
        missing="train on all tokens",
    )
    noise_scale: bool = option(False, Flag(), "Measure the gradient noise scale of every arm.")
    trace: bool = option(False, Flag(), "Write trace.json, which records what every rank does when.")
    trace_updates: int = option(20, Whole(), "Number of updates that a trace records of each arm, from its first.")


@dataclass(frozen=True)
class SimulationSettings(Options):
    """The cluster in simulated time, if the experiment runs on one.

    Attributes:
        simulate: how many workers; None for real processes.
        network: a preset's name, or FILE.toml; None for `NETWORK`.
        straggler: what slows workers, in the words of `bigbatch.comm.simulation.computing.stragglers_named`; None if
            nothing does.
        gpu: what a worker computes on: `core`, `measured` (here, now) or a GPU's name; None for `CORE`.

    Raises:
        ConfigurationError: half of a simulation: what is simulated, but not how many workers.
    """

    title: ClassVar[str] = "Simulated time"

    simulate: int | None = option(
        None,
        Whole(most=1 << 20),
        "Number of workers to simulate, all in this process and in simulated time.",
        missing="real processes",
    )
    network: str | None = option(
        None, Name(networks, "FILE.toml"), "Network whose messages are simulated.", missing=NETWORK
    )
    straggler: str | None = option(
        None,
        Text("WORDS"),
        "What slows simulated workers: exponential:0.3, lognormal:0.3, slow:RANK:FACTOR or fail:RANK:SECONDS; several "
        "are joined by commas.",
        missing="none",
    )
    gpu: str | None = option(None, Name(gpus), "What a simulated worker computes on.", missing=CORE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.simulate is None:
            for one in options_of(type(self))[1:]:
                if getattr(self, one.name) is not None:
                    raise ConfigurationError(
                        f"{one.flag} says what is simulated: add --simulate WORKERS, or leave it out."
                    )


@dataclass(frozen=True)
class Settings(Options):
    """Everything that a user can ask of an experiment besides the strategy and its own options."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    wires: WireSettings = field(default_factory=WireSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    simulation: SimulationSettings = field(default_factory=SimulationSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        workers, simulated = self.batch.workers, self.simulation.simulate
        if simulated is not None and workers not in (None, simulated):
            raise ConfigurationError(
                f"-n asks for {workers} workers, --simulate for {simulated}. Leave -n out: there are no processes to "
                "start."
            )
        if simulated is not None and self.machine.device not in ("auto", "cpu"):
            raise ConfigurationError(
                f"--device {self.machine.device} says what processes compute on, but simulated workers compute on this "
                "process's CPU: leave --device out; --gpu says how fast they seem to be."
            )

    def plan(self, started: int | None = None) -> BatchPlan:
        """The plan of the accumulated arm, for as many workers as were started, are simulated, or are asked for.

        Args:
            started: how many workers a launcher started, if one did.

        Raises:
            ConfigurationError: the numbers contradict each other, or do not divide.
        """
        return self.batch.plan(started or self.simulation.simulate)

    def examples(self, example_tokens: int) -> int:
        """How many examples, of that many tokens each, an arm sees."""
        return math.ceil(self.data.tokens / example_tokens)


def own_options(strategy: str) -> Options:
    """The options of a strategy, besides those of every experiment.

    Raises:
        ConfigurationError: there is no such strategy, or one of its options has the name of a setting.
    """
    offered = STRATEGIES.options(strategy)
    settings = {one.name for one in options_of(Settings)}
    for one in options_of(type(offered)):
        if one.name in settings:
            raise ConfigurationError(
                f"The strategy {strategy} has an option {one.name!r}, as every experiment has: give it another name."
            )
    return offered


@dataclass(frozen=True)
class Request:
    """An experiment as a user asks for it: a strategy by name, with its own options, and the settings.

    Attributes:
        strategy: the strategy's name, as the user wrote it.
        settings: what every experiment can be asked.
        options: what was chosen among the strategy's own options, by name.
    """

    strategy: str
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, strategy: str, choices: Mapping[str, Any]) -> Self:
        """From values by name, of settings and of the strategy's own options alike.

        Raises:
            ConfigurationError: there is no such strategy or option, or an option does not take its value.
        """
        known = {one.name for one in options_of(Settings)}
        own = {name: value for name, value in choices.items() if name not in known}
        settings = Settings.of({name: value for name, value in choices.items() if name in known})
        if not own:
            return cls(strategy, settings)
        offered = own_options(strategy)
        names = [one.name for one in options_of(type(offered))]
        for name in own:
            if name not in names:
                raise unknown_option(name, [*sorted(known), *names], f"An experiment over {strategy}")
        chosen = offered.changed(own).flat()
        return cls(strategy, settings, {name: chosen[name] for name in own})

    def written(self) -> dict[str, Any]:
        """All of it in types that JSON can write."""
        return {"strategy": self.strategy, **self.settings.written(), **self.options}

    def words(self) -> list[str]:
        """The command line, from the strategy's name on, that asks for the same."""
        words = [self.strategy, *self.settings.words()]
        for one in STRATEGIES.options(self.strategy).offered() if self.options else ():
            if self.options.get(one.name, one.default) != one.default:
                words += one.words(self.options[one.name])
        return words

    def command(self) -> str:
        """What a user would type to ask for the same."""
        return shlex.join(["bigbatch-exp", *self.words()])
