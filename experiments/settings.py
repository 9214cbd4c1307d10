"""What a user can ask of an experiment."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bigbatch.batches import ARMS, Arm, BatchPlan, arms_of
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.launch import Launch
from bigbatch.noise import measurable
from bigbatch.optimizers import optimizer_named
from bigbatch.tasks import TASKS


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
        learning_rate: the same for every arm.
        optimizer: a name in the registry of optimisers.
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

    def check(self, plan: BatchPlan) -> None:
        """Refuse now, in one process, what every process would refuse later.

        Raises:
            ConfigurationError: an unknown arm, task or optimiser.
        """
        self.chosen_arms(plan)
        TASKS.load(self.task)
        optimizer_named(self.optimizer, self.learning_rate)

    def check_noise_scale(self, plan: BatchPlan, *, tells_squares: bool) -> None:
        """Refuse to measure what no arm can.

        Args:
            plan: of the accumulated arm.
            tells_squares: what the strategy says of itself.

        Raises:
            ConfigurationError: it was asked for, and no arm has more than one draw of the gradient an update.
        """
        if self.noise_scale and all(unmeasured(arm, tells_squares=tells_squares) for arm in self.chosen_arms(plan)):
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
