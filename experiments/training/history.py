"""The history of one arm: every update and validation, and their summary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from bigbatch.comm.schema import plain
from bigbatch.comm.update import Outcome
from bigbatch.experiments.runs.records import ArmRow, RunSummary, Simulated
from bigbatch.experiments.runs.run import environment, first_reaching
from bigbatch.experiments.training.goal import Goal
from bigbatch.experiments.training.settings import Request
from bigbatch.tasks.answers import AnsweringTask
from bigbatch.tasks.task import Task
from bigbatch.training.batches import Arm
from bigbatch.training.noise import noise_scale
from bigbatch.training.trainer import Update

LAST_SHARE = 0.1
"""The training loss reported is the mean over this last share of the tokens."""


NOISE = ("noise_scale", "gradient_square", "gradient_variance")
"""Keys of the gradient noise in an update's record, which are there only if it was measured."""

WASTE = ("padding", "imbalance")
"""Keys of what unequal lengths cost in an update's record, which are there only if examples have lengths."""

SCALE = ("loss_scale",)
"""The key of the dynamic loss scale in an update's record, which is there only in fp16."""

NOT_ALWAYS = (*NOISE, *WASTE, *SCALE)


def without_unmeasured(record: dict[str, Any]) -> dict[str, Any]:
    """Removes the entries on noise, lengths and the loss scale from an update's record, unless there were any."""
    left_out = {
        name
        for names, told in ((NOISE, "gradient_square"), (WASTE, "padding"), (SCALE, "loss_scale"))
        for name in names
        if not math.isfinite(record[told])
    }
    return {name: value for name, value in record.items() if name not in left_out}


@dataclass(frozen=True)
class Validation:
    """One measurement of the validation loss.

    Attributes:
        update: number of the update after which the loss was measured.
        tokens: tokens that all workers had trained on until then.
        seconds: seconds of training until then.
        loss: the validation loss, in nats per token.
        metrics: the task's other metrics, as far as they were measured.
    """

    update: int
    tokens: float
    seconds: float
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class History:
    """One worker's record of one arm: its updates and its validations.

    Attributes:
        updates: all updates, in order.
        tokens: tokens that all workers have trained on so far.
        seconds: seconds that this worker has trained so far; validation is not counted.
        validations: the validation losses so far.
    """

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.tokens = 0
        self.seconds = 0.0
        self.validations: list[Validation] = []

    def add(self, update: Update) -> None:
        """Adds an update to the history."""
        self.updates.append(update)
        self.tokens = update.total_tokens
        self.seconds += update.seconds

    def validated(
        self, update: int, tokens: float, seconds: float, loss: float, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Adds a validation loss, in nats per token, and metrics, with the update, tokens and seconds before it."""
        self.validations.append(Validation(update, tokens, seconds, loss, metrics or {}))

    @property
    def validation_loss(self) -> float:
        """The last validation loss that was measured, in nats per token; NaN before the first."""
        return self.validations[-1].loss if self.validations else float("nan")

    def until(self, target: Goal | None) -> dict[str, float | None]:
        """Computes updates, tokens and seconds until the target; None if it was not reached, {} without one."""
        if target is None:
            return {}
        measured = [target.measured(validation.loss, validation.metrics) for validation in self.validations]
        return {
            f"{what}_to_target": first_reaching(
                [getattr(v, name) for v in self.validations], measured, target.threshold
            )
            for what, name in (("updates", "update"), ("tokens", "tokens"), ("seconds", "seconds"))
        }

    def ended(self, target: Goal | None) -> bool:
        """Whether training can stop: the target is reached, or cannot be because the loss is not a number."""
        if target is None or not self.validations:
            return False
        last = self.validations[-1]
        return math.isnan(last.loss) or target.measured(last.loss, last.metrics) <= target.threshold

    def training_loss(self) -> float:
        """Computes the mean training loss per token over the last tenth of the tokens, in nats."""
        loss, tokens = 0.0, 0
        last = LAST_SHARE * sum(update.tokens for update in self.updates)
        for update in reversed([update for update in self.updates if update.tokens]):
            loss, tokens = loss + update.loss * update.tokens, tokens + update.tokens
            if tokens >= last:
                break
        return loss / tokens if tokens else float("nan")

    def mean_waste(self, name: str) -> float:
        """The mean over the updates of one of `WASTE`, each weighing as many as its tokens; NaN if not measured.

        A last, short batch, which leaves workers without any example, so counts for as little as it is.
        """
        measured = [update for update in self.updates if math.isfinite(getattr(update, name)) and update.tokens]
        tokens = sum(update.tokens for update in measured)
        return sum(update.tokens * getattr(update, name) for update in measured) / tokens if measured else math.nan

    def totals(self) -> dict[str, float]:
        """Computes the totals over all updates that `summarise` needs; times are in seconds."""
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
            "padding": self.mean_waste("padding"),
            "imbalance": self.mean_waste("imbalance"),
            "training_loss": self.training_loss(),
            "validation_loss": self.validation_loss,
            "gradient_square": self.updates[-1].gradient_square if self.updates else math.nan,
            "gradient_variance": self.updates[-1].gradient_variance if self.updates else math.nan,
        }


def summarise(
    arm: Arm, ranks: list[dict[str, Any]], replicas: int = 1, tokens: float | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """Makes the summary's row of one arm.

    Args:
        arm: the arm.
        ranks: for each rank, its `peak` memory in bytes, its history's totals (`history`, None if it did not train),
            and what its strategy has counted (`statistics`).
        replicas: number of models that the workers train; see `Strategy.replicas`.
        tokens: tokens that the arm was trained on; None to compute them from the workers' histories.
        seconds: seconds that the arm took; None to compute them from the workers' histories.

    Returns:
        The row. Times and bytes are means over the updates of all workers; memory is that of the worker with the
        largest peak. The noise scale is the ratio of the means of the workers' last estimates; it is left out if
        nobody measured.
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

    row: ArmRow = {
        "name": arm.name,
        "global_batch": arm.plan.global_batch,
        "batch_unit": arm.plan.unit,
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
        row["noise_scale"] = noise_scale(square, variance)
        row["gradient_square"], row["gradient_variance"] = square, variance
    if histories and math.isfinite(histories[0]["padding"]):
        row["padding"], row["imbalance"] = mean("padding"), mean("imbalance")
    if only_serving:
        row["server_peak_memory_bytes"] = max(rank["peak"] for rank in only_serving)
    if servers:
        row["servers"] = servers
    return plain(row)


def summary_of(
    request: Request,
    workers: int,
    task: Task,
    parameters: int,
    arms: list[dict[str, Any]],
    simulated: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the summary of an experiment for summary.json.

    Args:
        request: what was asked for.
        workers: number of workers that trained.
        task: the task that was learnt.
        parameters: number of parameters of the model.
        arms: rows of the arms; see `summarise`.
        simulated: description of the simulation; None if nothing was simulated.
    """
    goal = request.settings.observation.target
    summary: RunSummary = {
        "strategy": request.strategy,
        "workers": workers,
        "task": request.settings.data.task,
        "target": None if goal is None else goal.value,
        "target_metric": None if goal is None else goal.metric,
        "score": task.score,
        "trivial_answer": task.trivial_answer if isinstance(task, AnsweringTask) else None,
        "corpus_sha256": task.corpus_sha256,
        "parameters": parameters,
        "arms": cast("list[ArmRow]", arms),  # from `summarise`, with what else is known of each
        "simulated": cast("Simulated | None", simulated),
        "environment": environment(),
    }
    return plain(summary)
