"""What a user can ask of an experiment."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import OptimizerFactory
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.launch import Launch
from bigbatch.optimizers import optimizer_named
from bigbatch.optimizers.changed import clipped, scaled, scheduled
from bigbatch.optimizers.rates import SCALING_RULES, SCHEDULES, ScalingRule, Schedule, warm_up_start
from bigbatch.tasks import TASKS
from bigbatch.training.batches import ARMS, DEFAULT_BATCH, Arm, BatchPlan, arms_of
from bigbatch.training.noise import measurable

UNSCALED = "none"
"""The scaling rule that leaves everything as it is."""


@dataclass(frozen=True)
class Settings:
    """The options of an experiment, as given or by default.

    Attributes:
        task: a name in the registry of tasks.
        text: the user's own corpus, or None for the task's default.
        arms: names, separated by commas.
        tokens: to train each arm on.
        validation_tokens: held-out tokens to measure the loss on.
        target: the validation loss, in nats per token, with which an arm ends; None to train on all tokens.
        learning_rate: the peak rate, the same for every arm but for what `scaling` makes of it.
        optimizer: a name in the registry of optimisers.
        schedule: a name in the registry of schedules.
        warmup: updates in which the rate rises.
        scaling: a name in the registry of scaling rules.
        base_batch: examples behind an update for which the rate is meant, or None for 64.
        clip: the length of the longest gradient, or None for any.
        layers, width, heads, context, vocabulary: the Transformer's sizes.
        seed: of the initial weights and the order of the examples.
        bucket_size: bytes of gradients that are sent as one, about.
        overlap: send while backward still runs.
        node_size: ranks to treat as one machine, or None for those that are.
        threads: of torch, in every process.
        device: "auto", "cpu", "cuda" or "cuda:N".
        deadline: seconds after which a wait gives up.
        noise_scale: measure the gradient noise scale.
        trace: write down what every rank does when ...
        trace_updates: ... in the first so many updates of every arm.
    """

    task: str
    text: Path | None
    arms: str
    tokens: int
    validation_tokens: int
    target: float | None
    learning_rate: float
    optimizer: str
    schedule: str
    warmup: int
    scaling: str
    base_batch: int | None
    clip: float | None
    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    seed: int
    bucket_size: int
    overlap: bool
    node_size: int | None
    threads: int
    device: str
    deadline: float
    noise_scale: bool
    trace: bool
    trace_updates: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            near = self.width // self.heads * self.heads
            raise ConfigurationError(
                f"Width {self.width} cannot be divided by {self.heads} heads. The nearest widths that can are "
                f"{near or self.heads} and {near + self.heads}."
            )

    def check(self, plan: BatchPlan, name: str, strategy: type[Strategy]) -> None:
        """Refuse now, in one process, what every process would refuse later, or what would mean nothing.

        Args:
            plan: of the accumulated arm.
            name: the strategy's, as the user wrote it.
            strategy: that is to train the arms.

        Raises:
            ConfigurationError: an unknown arm, task, optimiser, schedule or scaling rule; a batch for which the rule
                cannot scale; a base batch and no rule; a target, and workers that are not in step; a noise scale that
                no arm can measure; or a number of workers with which the strategy cannot work.
        """
        strategy.workers_among(strategy.ranks_for(plan.workers))
        arms = self.chosen_arms(plan)
        TASKS.load(self.task)
        SCHEDULES.load(self.schedule)
        if self.base_batch is not None and self.scaling == UNSCALED:
            raise ConfigurationError(
                f"--base-batch {self.base_batch} says from which batch to scale: add --scaling linear or sqrt, or "
                "leave it out."
            )
        if self.target is not None and not strategy.in_step():
            raise ConfigurationError(
                f"--target {self.target:g} asks how long all workers take, but those of {name} are not in step, so "
                "that one's updates, tokens and seconds are not the others': leave --target out, or use ps:sync or an "
                "all-reduce."
            )
        for arm in arms:
            make = self._scaled(arm.plan, strategy)
            if self.scaling != UNSCALED:
                make([("weight", nn.Parameter(torch.zeros(1, 1)))])  # only an optimiser knows whether it can
        self._check_noise_scale(arms, tells_squares=strategy.tells_squares)

    def optimizer_for(self, plan: BatchPlan, updates: int, strategy: type[Strategy]) -> OptimizerFactory:
        """The factory of one arm's optimisers.

        Args:
            plan: the arm's.
            updates: that it makes.
            strategy: that makes them.

        Raises:
            ConfigurationError: as `check`; or the warm-up is longer than the arm, marked `everywhere`, for every rank
                finds the same.
        """
        make = self._scaled(plan, strategy)
        if (self.schedule, self.warmup) != ("constant", 0):
            schedule: Schedule = SCHEDULES.load(self.schedule)
            steps_per_update = strategy.steps_per_update(plan.workers)
            start = warm_up_start(SCALING_RULES.load(self.scaling), *self._batches(plan, strategy))
            make = scheduled(make, schedule, updates * steps_per_update, self.warmup * steps_per_update, start)
        return make if self.clip is None else clipped(make, self.clip)

    def _scaled(self, plan: BatchPlan, strategy: type[Strategy]) -> OptimizerFactory:
        """As named, with its rates for the examples behind one step."""
        make = optimizer_named(self.optimizer, self.learning_rate)
        rule: ScalingRule = SCALING_RULES.load(self.scaling)
        if self.scaling == UNSCALED:
            return make
        return scaled(make, rule, *self._batches(plan, strategy))

    def _batches(self, plan: BatchPlan, strategy: type[Strategy]) -> tuple[int, int]:
        """Examples behind one step, and those for which the rate is meant."""
        behind_a_step = plan.global_batch // plan.workers * strategy.gradients_per_step(plan.workers)
        return behind_a_step, self.base_batch or DEFAULT_BATCH

    def examples(self, example_tokens: int) -> int:
        """How many examples, of that many tokens each, an arm sees."""
        return math.ceil(self.tokens / example_tokens)

    def _check_noise_scale(self, arms: Sequence[Arm], *, tells_squares: bool) -> None:
        if self.noise_scale and all(unmeasured(arm, tells_squares=tells_squares) for arm in arms):
            raise ConfigurationError(
                f"--noise-scale compares the gradients behind one update, but every arm of {self.arms} has only one "
                "that can be told from others: use --accumulate 2 or more with the arm accumulated, or an all-reduce "
                "over two or more workers."
            )

    def as_json(self) -> dict[str, Any]:
        """The settings in types that JSON can write."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    def chosen_arms(self, plan: BatchPlan) -> list[Arm]:
        """The arms asked for, in the order asked for.

        Raises:
            ConfigurationError: there is no such arm, or none at all.
        """
        known = arms_of(plan)
        names = [name.strip() for name in self.arms.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise ConfigurationError(f"Unknown arm {name!r}. Known: {', '.join(ARMS)}.")
        if not names:
            raise ConfigurationError(f"No arm was named. Known: {', '.join(ARMS)}.")
        return [known[name] for name in dict.fromkeys(names)]


def unmeasured(arm: Arm, *, tells_squares: bool) -> str:
    """Why an arm cannot measure the gradient noise scale, as a sentence without its full stop; empty if it can.

    Args:
        arm: which.
        tells_squares: what the strategy says of itself.
    """
    if measurable(arm.plan.workers, arm.plan.accumulation, tells_squares=tells_squares):
        return ""
    several = f", and its {arm.plan.workers} workers' do not come together" if arm.plan.workers > 1 else ""
    return f"The arm {arm.name} cannot measure the noise scale: a worker's gradient is one micro-batch's alone{several}"


def resolve_device(name: str, launch: Launch) -> torch.device:
    """The device this process computes on.

    "auto" takes a GPU if every process on this machine can have its own, and "cuda" shares those there are.

    Raises:
        ConfigurationError: no such device here.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", launch.local_rank) if gpus >= launch.local_size else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"Unknown device {name!r}. Use auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return device
    if not gpus or (device.index or 0) >= gpus:
        seen = f"only {gpus}" if gpus else "no"
        raise ConfigurationError(
            f"The device {name!r} was asked for, but torch {torch.__version__} sees {seen} GPU here. Use --device cpu, "
            "or install a torch that was built for your GPU."
        )
    return device if device.index is not None else torch.device("cuda", launch.local_rank % gpus)
