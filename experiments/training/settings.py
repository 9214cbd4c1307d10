"""The options of an experiment, each with its default, its unit and a sentence of help.

A new option is one field here (or in the settings of the data or the model, or in the options of a strategy), and the
code that uses it. Nothing here imports torch, so that --help is quick.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import (
    BYTES,
    EXAMPLES,
    RANKS,
    SECONDS,
    SEED,
    TOKENS,
    UPDATES,
    Flag,
    Name,
    Number,
    Several,
    Text,
    Whole,
    checked,
)
from bigbatch.comm.options import Options, option, options_of, unknown_option
from bigbatch.comm.precisions import BYTES as FORMATS
from bigbatch.comm.precisions import FP32
from bigbatch.comm.strategies import NAMED, STRATEGIES
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.experiments.training.goal import Goal, Goals
from bigbatch.experiments.training.simulation_settings import SimulationSettings
from bigbatch.models.settings import ModelSettings
from bigbatch.optimizers import OPTIMIZERS, SCALING_RULES, SCHEDULES
from bigbatch.tasks.settings import DataSettings
from bigbatch.training.batches import (
    ARMS,
    DEFAULT_ACCUMULATION,
    DEFAULT_BATCH,
    Arm,
    BatchPlan,
    arms_of,
    derive_plan,
    token_plan,
)
from bigbatch.training.precision import PRECISIONS

UNSCALED = "none"
"""The scaling rule that leaves every rate as it is."""


@dataclass(frozen=True)
class BatchSettings(Options):
    """The options for batches and arms: how a batch is divided, and which arms are run.

    global batch = micro-batch × accumulation × workers; what is not given follows from the rest.

    Attributes:
        workers: number of workers that train; None for as many as a launcher started.
        batch_size: number of examples behind an update.
        batch_tokens: number of tokens behind an update, at most, instead of examples.
        micro_batch: number of examples that a worker computes at once.
        accumulate: number of micro-batches whose gradients a worker adds up for an update, in the arm `accumulated`.
        arms: which arms are run, in order.
        seed: seed for the initial weights and the order of the examples.
    """

    title: ClassVar[str] = "Batch and arms"

    workers: int | None = option(
        None, Whole(most=100_000), "Number of workers to start, without mpirun or torchrun.", missing="1", short="-n"
    )
    batch_size: int | None = option(
        None, EXAMPLES, "Global batch of an update, in examples.", missing=f"about {DEFAULT_BATCH}"
    )
    batch_tokens: int | None = option(
        None,
        TOKENS,
        "Global batch in tokens, at most: the number of its examples times the longest, source and target together.",
        missing="counted in examples",
    )
    micro_batch: int | None = option(
        None, EXAMPLES, "Examples that a worker computes at once.", missing="what the batch size leaves"
    )
    accumulate: int | None = option(
        None,
        UPDATES,
        "Micro-batches whose gradients a worker adds up for one update.",
        missing=str(DEFAULT_ACCUMULATION),
    )
    arms: tuple[str, ...] = option(ARMS, Several(Name(lambda: ARMS)), "Arms to run, in this order.")
    seed: int = option(0, SEED, "Seed for the initial weights and the order of the examples.")

    def plan(self, workers: int | None = None) -> BatchPlan:
        """Computes how the batches of the accumulated arm are divided.

        Args:
            workers: number of workers that a launcher started, if one did.

        Raises:
            ConfigurationError: the numbers contradict each other or do not divide; it names the nearest that do.
        """
        if workers is not None and self.workers not in (None, workers):
            raise ConfigurationError(
                f"-n asks for {self.workers} workers, but the launcher started {workers}. Leave -n out, or start them "
                "without it."
            )
        if self.batch_tokens is not None:
            for name in ("batch_size", "micro_batch"):
                if getattr(self, name) is not None:
                    raise ConfigurationError(
                        f"--batch-tokens counts a batch in tokens, and --{name.replace('_', '-')} in examples: leave "
                        "one of them out."
                    )
            return token_plan(self.batch_tokens, workers or self.workers, self.accumulate)
        return derive_plan(workers or self.workers, self.batch_size, self.micro_batch, self.accumulate)

    def chosen_arms(self, plan: BatchPlan) -> list[Arm]:
        """Makes the arms that the user chose, in the chosen order, from the plan of the accumulated arm."""
        known = arms_of(plan)
        return [known[name] for name in self.arms]


@dataclass(frozen=True)
class UpdateSettings(Options):
    """The options for updates: the optimiser, the learning rate, and gradient clipping.

    Attributes:
        learning_rate: the peak learning rate, the same for every arm before `scaling` changes it.
        optimizer: a name in the registry of optimisers, "torch.optim:CLASS", or FILE.py:name.
        schedule: a name in the registry of schedules, or FILE.py:name.
        warmup: number of updates in which the rate rises.
        scaling: a name in the registry of scaling rules, or FILE.py:name.
        base_batch: number of examples behind an update for which the rate is meant, or None for 64.
        clip: norm to which longer gradients are shortened, or None for no limit.
    """

    title: ClassVar[str] = "Update"

    learning_rate: float = option(1e-3, Number(above=0, most=1e6), "Peak learning rate, the same for every arm.")
    optimizer: str = option(
        "adamw", Name(OPTIMIZERS.names, "torch.optim:CLASS or FILE.py:name"), "Optimiser that makes the updates."
    )
    schedule: str = option(
        "constant", Name(SCHEDULES.names, "FILE.py:name"), "How the learning rate goes from update to update."
    )
    warmup: int = option(0, Whole(least=0, most=UPDATES.most), "Updates in which the learning rate rises to its peak.")
    scaling: str = option(
        UNSCALED, Name(SCALING_RULES.names, "FILE.py:name"), "How the learning rate grows with the global batch."
    )
    base_batch: int | None = option(
        None, EXAMPLES, "Global batch for which --learning-rate is meant.", missing=str(DEFAULT_BATCH)
    )
    clip: float | None = option(
        None, Number(above=0), "Norm to which longer gradients are shortened.", missing="no limit"
    )


@dataclass(frozen=True)
class WireSettings(Options):
    """The options for communication: how gradients are sent between the ranks.

    Attributes:
        bucket_size: target size of a gradient bucket, in bytes; see `FlatParameters.buckets`.
        overlap: whether buckets are sent while backward still runs.
        broadcast_buffers: whether all models take worker 0's buffers after every update.
        node_size: number of ranks to treat as one machine, or None for those that share one.
        wire: precision in which gradients, and parameters from servers, are sent; "fp32" for as they are.
        deadline: seconds after which a wait gives up.
    """

    title: ClassVar[str] = "Wires"

    bucket_size: int = option(25 * 2**20, BYTES, "Target size of a gradient bucket.")
    overlap: bool = option(True, Flag(), "Send gradient buckets while backward still runs.")
    broadcast_buffers: bool = option(
        True, Flag(), "Give all models worker 0's buffers, such as running means, after every update."
    )
    node_size: int | None = option(
        None, RANKS, "Number of ranks to treat as one machine.", missing="those that share one"
    )
    wire: str = option(
        FP32,
        Name(lambda: FORMATS),
        "Precision in which gradients are sent, and parameters by servers; bf16 and fp16 take half the bytes.",
    )
    deadline: float = option(
        DEFAULT_DEADLINE, SECONDS, "Seconds without a message or a sign of life from a rank before the job ends."
    )


@dataclass(frozen=True)
class MachineSettings(Options):
    """The options for the machine: what every process computes on.

    Attributes:
        threads: number of threads that torch uses in every process.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        precision: what models compute in; one of `bigbatch.training.precision.PRECISIONS`.
        compile: whether the model is compiled by torch.compile.
    """

    title: ClassVar[str] = "Machine"

    threads: int = option(1, Whole(most=1024), "Threads that torch uses in every process.")
    device: str = option("auto", Text("DEVICE"), "Device to compute on: auto, cpu, cuda or cuda:N.")
    precision: str = option(
        FP32,
        Name(lambda: PRECISIONS),
        "Precision to compute in. Weights stay in float32, but with bf16-weights; small gradients are kept from "
        "vanishing in fp16 by a scale, but with fp16-unscaled.",
    )
    compile: bool = option(False, Flag(), "Compile the model with torch.compile, which needs a C++ compiler.")


@dataclass(frozen=True)
class ObservationSettings(Options):
    """The options for observation: what is measured and recorded during training.

    Attributes:
        target: validation loss or score at which an arm ends; None to train on all tokens.
        noise_scale: whether to measure the gradient noise scale.
        weights: whether to keep the model that each arm has trained.
        trace: whether to record what every rank does when, in the first updates of each arm.
        trace_updates: number of updates of each arm that a trace records.
    """

    title: ClassVar[str] = "Observation"

    target: Goal | None = option(
        None,
        Goals(),
        "Validation loss in nats per token, such as 3.3, or score, such as chrF:70, at which an arm ends early.",
        missing="train on all tokens",
    )
    noise_scale: bool = option(False, Flag(), "Measure the gradient noise scale of every arm.")
    weights: bool = option(True, Flag(), "Keep the model that each arm has trained, for `predict`.")
    trace: bool = option(False, Flag(), "Write trace.json, which records what every rank does when.")
    trace_updates: int = option(20, UPDATES, "Number of updates that a trace records of each arm, from its first.")


@dataclass(frozen=True)
class Settings(Options):
    """All options of an experiment besides the strategy and the strategy's own options."""

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
        if simulated is not None and self.machine.compile:
            raise ConfigurationError(
                "--compile makes this machine's computing quicker, which a simulated clock does not see: leave it out."
            )

    @property
    def formats(self) -> dict[str, str]:
        """The formats of numbers that a run computes and sends in, as its summary has them."""
        return {"precision": self.machine.precision, "wire": self.wires.wire}

    def plan(self, started: int | None = None) -> BatchPlan:
        """Computes how the accumulated arm's batches are divided over the workers started, simulated or asked for.

        Args:
            started: number of workers that a launcher started, if one did.

        Raises:
            ConfigurationError: the numbers contradict each other, or do not divide.
        """
        return self.batch.plan(started or self.simulation.simulate)

    def examples(self, tokens: int, example_tokens: float) -> int:
        """Computes the number of examples, of `example_tokens` tokens each, that an arm sees.

        Args:
            tokens: number of tokens that the arm is trained on if the user has not chosen.
            example_tokens: mean number of tokens in an example.
        """
        return math.ceil((self.data.tokens or tokens) / example_tokens)


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
        """Makes a request from values by name, for the settings and for the strategy's own options alike.

        Raises:
            ConfigurationError: there is no such strategy or option, or an option does not take its value.
        """
        strategy = checked("The strategy", NAMED, strategy)
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
        """Converts the request to types that JSON can write."""
        return {"strategy": self.strategy, **self.settings.written(), **self.options}

    def words(self) -> list[str]:
        """Returns the words of the command line, from the strategy's name on, that makes the same request."""
        words = [self.strategy, *self.settings.words()]
        for one in STRATEGIES.options(self.strategy).offered() if self.options else ():
            if self.options.get(one.name, one.default) != one.default:
                words += one.words(self.options[one.name])
        return words

    def command(self) -> str:
        """Returns the command that a user would type to make the same request."""
        return shlex.join(["bigbatch-exp", *self.words()])
