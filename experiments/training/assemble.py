"""Assembling an experiment: the one place where settings become a task, a model, optimisers and a trainer."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters, OptimizerFactory
from bigbatch.comm.precisions import FP32
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.launch import Launch
from bigbatch.experiments.training.launcher import usable_cores
from bigbatch.experiments.training.settings import UNSCALED, Request, Settings
from bigbatch.models.kinds import kind_named
from bigbatch.models.model import Model, SavesItself
from bigbatch.models.sizes import ModelSize
from bigbatch.optimizers import SCALING_RULES, SCHEDULES
from bigbatch.optimizers.changed import clipped, scaled, scheduled
from bigbatch.optimizers.rates import ScalingRule, Schedule, warm_up_start
from bigbatch.optimizers.standard import optimizer_named
from bigbatch.tasks import TASKS
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.task import Task, check_taken, prepared, wrong_facts
from bigbatch.training.batches import DEFAULT_BATCH, EXAMPLES, Arm, BatchPlan
from bigbatch.training.compiling import CompiledParts
from bigbatch.training.compute_model import ComputeModel
from bigbatch.training.division import Batches
from bigbatch.training.noise import measurable
from bigbatch.training.order import DataOrder
from bigbatch.training.precision import PRECISIONS
from bigbatch.training.trainer import Trainer, lengths_for


def strategy_of(request: Request) -> type[Strategy]:
    """Loads the strategy that a request names, with the options that were chosen.

    Raises:
        ConfigurationError: there is no such strategy, or its options contradict each other.
    """
    strategy: type[Strategy] = STRATEGIES.load(request.strategy)
    return strategy.configured(request.options)


@lru_cache(maxsize=1)
def task_of(settings: DataSettings) -> Task:
    """Prepares the task that the settings name; the last task is cached, for several experiments in one process.

    Raises:
        ConfigurationError: there is no such task, its text cannot be used, or it describes itself wrongly.
    """
    task = prepared(TASKS.load(settings.task), settings)
    for wrong in wrong_facts(task):
        raise ConfigurationError(f"The task {settings.task}: {wrong}")
    return task


class Assembly:
    """Makes the parts of an experiment that its settings name: models, optimisers and trainers.

    Args:
        settings: the settings of the experiment.
        task: the task to learn; see `task_of`.

    Attributes:
        settings: the settings of the experiment.
        task: the task to learn.
        examples: number of examples that an arm sees.
        precision: what the model computes in.
        remarks: sentences without full stops about the last model built, such as what was drawn at random.
    """

    def __init__(self, settings: Settings, task: Task) -> None:
        self.settings = settings
        self.task = task
        self.examples = settings.examples(task.default_tokens, task.example_tokens)
        self._kind = kind_of_model(settings, type(task))
        self.precision = PRECISIONS[settings.machine.precision]
        self.remarks: Sequence[str] = ()
        self._first: nn.Module | None = None

    def try_model(self) -> None:
        """Build the model that `model` will return first, to refuse early what cannot be built.

        Raises:
            ConfigurationError: the model cannot be built for this task.
        """
        self._first = self.model()

    def model(self) -> nn.Module:
        """Builds a new model, with the same weights on every rank, in the precision that weights are kept in.

        Raises:
            ConfigurationError: the model cannot be built for this task.
        """
        made, self._first = self._first, None
        if made is None:
            made = self._kind.build(self.task, self.settings.model, self.settings.batch.seed)
            self.remarks = made.remarks if isinstance(made, SavesItself) else ()
        return made if self.precision.weights == FP32 else made.to(self.precision.dtype)

    def size(self) -> ModelSize:
        """Computes the size of the model, for simulated time."""
        return self._kind.size(self.task, self.settings.model)

    def optimizer(self, plan: BatchPlan, strategy: type[Strategy]) -> OptimizerFactory:
        """Makes the factory of one arm's optimisers, with the scaling rule, the schedule and clipping applied.

        Args:
            plan: how the arm's batches are divided.
            strategy: the strategy that makes the updates.

        Raises:
            ConfigurationError: the rule cannot scale to that batch; or the warm-up is longer than the arm, which is
                marked `everywhere`, since every rank finds the same.
        """
        return optimizer_of(self.settings, plan, self.updates(plan), strategy)

    def updates(self, plan: BatchPlan) -> int:
        """Counts the updates of an arm whose batches are divided by a plan."""
        if plan.unit == EXAMPLES:
            return plan.updates(self.examples)
        order = DataOrder(self.task.sizes["training"], self.settings.batch.seed)
        return Batches(plan, order, self.examples, lengths_for(plan, self.task)).updates

    def trainer(
        self,
        strategy: Strategy,
        optimizer: OptimizerFactory,
        plan: BatchPlan,
        device: torch.device,
        *,
        examples: int | None = None,
        compute_model: ComputeModel | None = None,
        overlap: bool | None = None,
    ) -> Trainer:
        """Start the strategy on a new model, and make the trainer of both; all ranks call it together.

        Args:
            strategy: the strategy, which must not be started yet.
            optimizer: the factory of optimisers.
            plan: how a batch is divided.
            device: the device that this rank computes on.
            examples: number of examples to see in all; None for the number in the settings.
            compute_model: how long computing takes, if the clock is a simulated one.
            overlap: whether buckets are pushed while backward still runs; None for what the settings say.

        Raises:
            MismatchError: on every rank, if the ranks have different models.
            ConfigurationError: the model is to be compiled, and there is no compiler.
            ConfigurationError: on every rank, if what the strategy sends cannot be sent in the precision of the wires.
        """
        settings = self.settings
        model = self.model().to(device)
        parameters = FlatParameters(model)
        strategy.start(
            parameters,
            optimizer,
            bucket_bytes=settings.wires.bucket_size,
            with_squares=settings.observation.noise_scale,
            wire=settings.wires.wire,
            expected_tokens=plan.expected_tokens(self.task.example_tokens, self.task.source_tokens),
        )
        return Trainer(
            model,
            self.task,
            strategy,
            parameters,
            plan,
            self.examples if examples is None else examples,
            settings.batch.seed,
            overlap=settings.wires.overlap if overlap is None else overlap,
            broadcast_buffers=settings.wires.broadcast_buffers,
            compute_model=compute_model,
            precision=self.precision,
            measure_noise=settings.observation.noise_scale,
            compiled=CompiledParts(model) if settings.machine.compile else None,
        )


def kind_of_model(settings: Settings, task: type[Task]) -> type[Model]:
    """Loads the kind of model that the settings name, or that the task takes.

    Raises:
        ConfigurationError: there is no such kind, or it is one of our own that is made for other tasks' batches; or it
            cannot recompute, as it should.
    """
    name = settings.model.kind(task.default_model)
    if name in OWN and task.default_model in OWN and name != task.default_model:
        raise ConfigurationError(
            f"The model {name} cannot learn the task {settings.data.task}, which takes the model {task.default_model}: "
            "leave --model out, or name a size: tiny, small, base or big."
        )
    kind = kind_named(name)
    if not kind.takes_options:
        settings.model.refuse({"model_option"}, "which has no options beside those of every model")
    if settings.model.recompute and not kind.recomputes:
        raise ConfigurationError(
            f"The model {name} does not say that it can compute its activations again (`recomputes = True`): leave "
            "--recompute out, or have its build heed settings.recompute."
        )
    return kind


OWN = ("decoder", "encoder-decoder", "encoder")
"""Our own kinds of models, each of which takes the batches of some tasks."""


def optimizer_of(settings: Settings, plan: BatchPlan, updates: int, strategy: type[Strategy]) -> OptimizerFactory:
    """Makes the factory of one arm's optimisers from the settings; see `Assembly.optimizer`.

    Args:
        settings: the settings of the experiment.
        plan: how the arm's batches are divided.
        updates: number of updates that the arm makes.
        strategy: the strategy that makes the updates.

    Raises:
        ConfigurationError: see `Assembly.optimizer`.
    """
    update = settings.update
    make = _scaled(settings, plan, strategy)
    if (update.schedule, update.warmup) != ("constant", 0):
        schedule: Schedule = SCHEDULES.load(update.schedule)
        steps_per_update = strategy.steps_per_update(plan.workers)
        start = warm_up_start(SCALING_RULES.load(update.scaling), *_batches(settings, plan, strategy))
        make = scheduled(make, schedule, updates * steps_per_update, update.warmup * steps_per_update, start)
    return make if update.clip is None else clipped(make, update.clip)


def _scaled(settings: Settings, plan: BatchPlan, strategy: type[Strategy]) -> OptimizerFactory:
    """The optimisers as named, with their rates for the examples behind one step."""
    update = settings.update
    make = optimizer_named(update.optimizer, update.learning_rate)
    rule: ScalingRule = SCALING_RULES.load(update.scaling)
    return make if update.scaling == UNSCALED else scaled(make, rule, *_batches(settings, plan, strategy))


def _batches(settings: Settings, plan: BatchPlan, strategy: type[Strategy]) -> tuple[int, int]:
    """Examples behind one step of an optimiser, and those for which the rate is meant."""
    behind_a_step = plan.global_batch // plan.workers * strategy.gradients_per_step(plan.workers)
    return behind_a_step, settings.update.base_batch or DEFAULT_BATCH


def check(request: Request, plan: BatchPlan, strategy: type[Strategy]) -> None:
    """Refuse early, in one process, a request that every process would refuse later or that makes no sense.

    Args:
        request: what was asked for.
        plan: how the batches of the accumulated arm are divided.
        strategy: the strategy that will train the arms.

    Raises:
        ConfigurationError: an unknown task, model, optimiser, schedule or scaling rule; a batch for which the rule
            cannot scale; a base batch and no rule; a target, and workers that are not in step; a noise scale that no
            arm can measure; a number of workers with which the strategy cannot work; or a precision in which it cannot
            send gradients.
    """
    settings = request.settings
    strategy.check_wire(settings.wires.wire)
    strategy.workers_among(strategy.ranks_for(plan.workers))
    task: type[Task] = TASKS.load(settings.data.task)
    check_taken(task, settings.data)
    kind_of_model(settings, task)
    SCHEDULES.load(settings.update.schedule)
    update, target = settings.update, settings.observation.target
    if update.base_batch is not None and update.scaling == UNSCALED:
        raise ConfigurationError(
            f"--base-batch {update.base_batch} says from which batch to scale: add --scaling linear or sqrt, or leave "
            "it out."
        )
    if plan.unit != EXAMPLES and settings.observation.noise_scale:
        raise ConfigurationError(
            "--noise-scale compares gradients of as many examples each, and --batch-tokens makes batches of different "
            "numbers: use --batch-size."
        )
    if plan.unit != EXAMPLES and update.scaling != UNSCALED and update.base_batch is None:
        raise ConfigurationError(
            f"--scaling {update.scaling} needs to know for how many tokens the rate is meant: add --base-batch."
        )
    if target is not None and not strategy.in_step():
        raise ConfigurationError(
            f"--target {target} asks how long all workers take, but those of {request.strategy} are not in step, so "
            "that one's updates, tokens and seconds are not the others': leave --target out, or use ps:sync or an "
            "all-reduce."
        )
    arms = settings.batch.chosen_arms(plan)
    for arm in arms:
        make = _scaled(settings, arm.plan, strategy)
        if update.scaling != UNSCALED:
            make([("weight", nn.Parameter(torch.zeros(1, 1)))])  # only an optimiser knows whether it can
    if settings.observation.noise_scale and all(unmeasured(arm, tells_squares=strategy.tells_squares) for arm in arms):
        raise ConfigurationError(
            f"--noise-scale compares the gradients behind one update, but every arm of {','.join(settings.batch.arms)} "
            "has only one that can be told from others: use --accumulate 2 or more with the arm accumulated, or an "
            "all-reduce over two or more workers."
        )


def unmeasured(arm: Arm, *, tells_squares: bool) -> str:
    """Says why an arm cannot measure the gradient noise scale, as a sentence without its full stop; empty if it can.

    Args:
        arm: the arm.
        tells_squares: whether the strategy tells the squares of the workers' gradients; see `Strategy.tells_squares`.
    """
    if measurable(arm.plan.workers, arm.plan.accumulation, tells_squares=tells_squares):
        return ""
    several = f", and its {arm.plan.workers} workers' do not come together" if arm.plan.workers > 1 else ""
    return f"The arm {arm.name} cannot measure the noise scale: a worker's gradient is one micro-batch's alone{several}"


def noise_remarks(settings: Settings, arm: Arm, *, tells_squares: bool) -> list[str]:
    """Makes remarks for the user about an arm that cannot measure the noise scale that was asked for; mostly none."""
    remark = unmeasured(arm, tells_squares=tells_squares) if settings.observation.noise_scale else ""
    return [remark] if remark else []


def resolve_device(name: str, launch: Launch) -> torch.device:
    """Chooses the device that this process computes on.

    "auto" takes a GPU if every process on this machine can have its own, and "cuda" shares the GPUs that there are.

    Raises:
        ConfigurationError: there is no such device here.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", launch.local_rank) if gpus >= launch.local_size else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
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


def use_threads(threads: int, tell: Callable[[str], None]) -> None:
    """Has torch compute on so many threads in this process from now on, and says if they are more than it has cores."""
    if threads > (cores := usable_cores()):
        tell(
            f"Torch uses {threads} threads, as --threads asks for, but each process may use {cores} core(s), so that "
            f"threads wait for each other; --threads {cores} is the largest number that makes sense here"
        )
    torch.set_num_threads(threads)


def facts_about_task(task: Task) -> dict[str, Any]:
    """Returns the facts about a task, by name, that must be the same on all ranks and machines."""
    return {"sha256": task.corpus_sha256, "vocabulary": task.vocabulary_size}
