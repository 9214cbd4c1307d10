"""What one arm brought: every update and validation, and their summary."""

import math
from dataclasses import dataclass
from typing import Any

from bigbatch.comm.update import Outcome
from bigbatch.experiments.runs.run import environment, first_reaching
from bigbatch.experiments.training.settings import Request
from bigbatch.tasks.task import Task
from bigbatch.training.batches import Arm
from bigbatch.training.noise import noise_scale
from bigbatch.training.trainer import Update

LAST_SHARE = 0.1
"""The training loss reported is the mean over this last share of the tokens."""


NOISE = ("noise_scale", "gradient_square", "gradient_variance")
"""What an update's line has of the gradient noise, if it was measured."""


def without_unmeasured(record: dict[str, Any]) -> dict[str, Any]:
    """An update's line without its entries on gradient noise, unless that was measured."""
    measured = math.isfinite(record["gradient_square"])
    return {name: value for name, value in record.items() if measured or name not in NOISE}


@dataclass(frozen=True)
class Validation:
    """The validation loss, as it was measured once.

    Attributes:
        update: the number of the update after which that was.
        tokens: of all workers until then.
        seconds: of training until then.
        loss: in nats per token.
    """

    update: int
    tokens: float
    seconds: float
    loss: float


class History:
    """What one worker saw of one arm.

    Attributes:
        updates: all of them, in order.
        tokens: of all workers so far.
        seconds: of this worker's training so far; validation is not counted.
        validations: the validation losses so far.
    """

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.tokens = 0
        self.seconds = 0.0
        self.validations: list[Validation] = []

    def add(self, update: Update) -> None:
        """One more update."""
        self.updates.append(update)
        self.tokens = update.total_tokens
        self.seconds += update.seconds

    def validated(self, update: int, tokens: float, seconds: float, loss: float) -> None:
        """The validation loss was measured."""
        self.validations.append(Validation(update, tokens, seconds, loss))

    @property
    def validation_loss(self) -> float:
        """The last one measured, in nats per token; NaN before the first."""
        return self.validations[-1].loss if self.validations else float("nan")

    def until(self, target: float | None) -> dict[str, float | None]:
        """Updates, tokens and seconds until the target was reached, if it was; nothing if there is none."""
        if target is None:
            return {}
        losses = [validation.loss for validation in self.validations]
        return {
            f"{what}_to_target": first_reaching([getattr(v, name) for v in self.validations], losses, target)
            for what, name in (("updates", "update"), ("tokens", "tokens"), ("seconds", "seconds"))
        }

    def ended(self, target: float | None) -> bool:
        """Whether there is no more to train for: the target is reached, or cannot be, the loss being no number."""
        return target is not None and not self.validation_loss > target

    def training_loss(self) -> float:
        """The mean loss per token over the last tenth of the tokens, in nats."""
        loss, tokens = 0.0, 0
        last = LAST_SHARE * sum(update.tokens for update in self.updates)
        for update in reversed([update for update in self.updates if update.tokens]):
            loss, tokens = loss + update.loss * update.tokens, tokens + update.tokens
            if tokens >= last:
                break
        return loss / tokens if tokens else float("nan")

    def totals(self) -> dict[str, float]:
        """Sums over the updates, for the summary."""
        return {
            "skipped": sum(update.outcome in (Outcome.NO_DATA, Outcome.NOT_FINITE) for update in self.updates),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "compute": sum(update.compute_seconds for update in self.updates),
            "communication": sum(update.communication_seconds for update in self.updates),
            "total_communication": sum(update.total_communication_seconds for update in self.updates),
            "waiting": sum(update.waiting_seconds for update in self.updates),
            "updates": len(self.updates),
            "last_update": self.updates[-1].number if self.updates else 0,
            "bytes_sent": sum(update.bytes_sent for update in self.updates),
            "training_loss": self.training_loss(),
            "validation_loss": self.validation_loss,
            "gradient_square": self.updates[-1].gradient_square if self.updates else math.nan,
            "gradient_variance": self.updates[-1].gradient_variance if self.updates else math.nan,
        }


def summarise(
    arm: Arm, ranks: list[dict[str, Any]], replicas: int = 1, tokens: float | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """One arm's row.

    Args:
        arm: which.
        ranks: of each rank, its `peak` memory in bytes, its history's totals (`history`) if it trained, and what its
            strategy has counted (`statistics`).
        replicas: how many models the workers train; see `Strategy.replicas`.
        tokens: that it was trained on, if the workers do not know.
        seconds: that it took, if the workers do not know.

    Returns:
        Times and bytes are means over the updates of all workers, memory is that of the hungriest worker. The noise
        scale is the ratio of means over the workers, of their last estimates; where nobody measured, there is none.
    """
    workers = [rank for rank in ranks if rank["history"] is not None]
    only_serving = [rank for rank in ranks if rank["history"] is None]
    servers = [rank["statistics"] for rank in ranks if rank["statistics"]]
    histories = [rank["history"] for rank in workers]
    if not tokens:
        behind = [history["tokens"] for history in histories]
        tokens = sum(behind) if replicas > 1 else max(behind, default=0)

    def mean(key: str, over: str | None = None) -> float:
        """Of one thing over the workers, or for each of another thing."""
        count = sum(history[over] for history in histories) if over else len(histories)
        return sum(history[key] for history in histories) / count if count else float("nan")

    row = {
        "name": arm.name,
        "global_batch": arm.plan.global_batch,
        "micro_batch": arm.plan.micro_batch,
        "accumulation": arm.plan.accumulation,
        "updates": max((history["last_update"] for history in histories), default=0),
        "worker_updates": sum(history["updates"] for history in histories),
        "skipped_updates": max((history["skipped"] for history in histories), default=0),
        "tokens": tokens,
        "tokens_per_second": tokens / (seconds or mean("seconds")),
        "update_seconds": mean("seconds", "updates"),
        "compute_seconds": mean("compute", "updates"),
        "communication_seconds": mean("communication", "updates"),
        "total_communication_seconds": mean("total_communication", "updates"),
        "waiting_seconds": mean("waiting", "updates"),
        "bytes_sent_per_update": mean("bytes_sent", "updates"),
        "peak_memory_bytes": max((rank["peak"] for rank in workers), default=0),
        "training_loss": mean("training_loss"),
        "validation_loss": histories[0]["validation_loss"] if histories else float("nan"),
    }
    measured = [history for history in histories if math.isfinite(history["gradient_square"])]
    if measured:
        square, variance = (
            sum(history[key] for history in measured) / len(measured)
            for key in ("gradient_square", "gradient_variance")
        )
        row |= dict(zip(NOISE, (noise_scale(square, variance), square, variance), strict=True))
    if only_serving:
        row["server_peak_memory_bytes"] = max(rank["peak"] for rank in only_serving)
    if servers:
        row["servers"] = servers
    return row


def summary_of(
    request: Request,
    workers: int,
    task: Task,
    parameters: int,
    arms: list[dict[str, Any]],
    simulated: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What came out of an experiment, as summary.json holds it.

    Args:
        request: what was asked for.
        workers: how many trained.
        task: what was learnt.
        parameters: how many the model has.
        arms: the arms' rows; see `summarise`.
        simulated: what was simulated, if anything.
    """
    return {
        "strategy": request.strategy,
        "workers": workers,
        "task": request.settings.data.task,
        "target": request.settings.observation.target,
        "corpus_sha256": task.corpus_sha256,
        "parameters": parameters,
        "arms": arms,
        "simulated": simulated,
        "environment": environment(),
    }
