"""Training one arm on a worker: updates, and validations between them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.wires.life import doing
from bigbatch.experiments.training.history import History, without_unmeasured
from bigbatch.experiments.training.precision_speed import remark_on
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.settings import Settings
from bigbatch.models.model import SavesItself
from bigbatch.training.trainer import Trainer

VALIDATIONS = 8
"""Number of times that an arm validates while it trains, at equal distances, after validating once before it."""

TARGET_STEPS = 1.1
"""Ratio of the numbers of updates at two successive validations while an arm trains to a target."""


@dataclass(frozen=True)
class Trained:
    """What is left of an arm on a worker.

    Attributes:
        history: the updates and the validations.
        measured: what the task has measured on each held-out example at the end; None on workers that did not measure.
        weights: the trained model's state by name; None on all workers but worker 0, or if nobody asked for it.
        model: the model, if it saves its state in a form of its own.
    """

    history: History
    measured: list[Any] | None
    weights: dict[str, Tensor] | None
    model: SavesItself | None = None


def train(
    trainer: Trainer, arm: str, settings: Settings, reporter: Reporter, record: Callable[[dict[str, Any]], None]
) -> tuple[History, list[Any] | None]:
    """Train one arm on a worker, and measure the validation loss now and then, and the task's score if it has one.

    Args:
        trainer: the worker's trainer.
        arm: name of the arm.
        settings: the settings of the experiment.
        reporter: shows the progress.
        record: called with a record of every update and every validation.

    Returns:
        The history, and what the task has measured at the last validation, if it measures then.

    Raises:
        ConfigurationError: the target is a score that the task does not measure.
    """
    history, task, target = History(), trainer.task, settings.observation.target
    examples = validation_examples(trainer, settings)
    scored = task.score is not None or (target is not None and target.metric is not None)
    measured: list[Any] | None = None
    stops = validation_points(trainer.batches.updates, to_target=target is not None)

    def validate(number: int) -> None:
        nonlocal measured
        with doing(f"validating the arm {arm}"):
            loss = trainer.validate(examples)
            measured = trainer.measure(examples) if scored else None
        if loss is None:  # another worker looks
            return
        metrics = {} if measured is None else task.metrics(measured)
        if target is not None and target.metric is not None and target.name_among(metrics) is None:
            raise ConfigurationError(
                f"The task {settings.data.task} has no score {target.metric!r}: it measures "
                f"{', '.join(metrics) or 'none'}.",
                everywhere=True,  # only workers in step train to a target, and they have measured the same
            )
        history.validated(number, history.tokens, history.seconds, loss, metrics)
        line = {"kind": "validation", "arm": arm, **asdict(history.validations[-1])}
        record(line if metrics else {name: value for name, value in line.items() if name != "metrics"})

    meet = trainer.plan.workers > 1  # once all have ended, whatever the number of their last update is
    with doing(f"computing the first micro-batch of the arm {arm}"):
        trainer.warm_up()
    if arm == settings.batch.arms[0] and settings.simulation.simulate is None and trainer.compiled is None:
        with doing("comparing the speeds of two precisions"):
            said = remark_on(trainer, settings)
            reporter.remark([said] if said else [])
    validate(0)
    if trainer.compiled is not None:
        trainer.compiled.settle()
    with reporter.arm(arm, trainer.batches.updates) as bar:
        for update in trainer.updates():
            history.add(update)
            line = {
                "kind": "update",
                "arm": arm,
                **asdict(update),
                "applied": update.applied,
                "noise_scale": update.noise_scale,
                "compute_seconds": update.compute_seconds,
                "total_seconds": history.seconds,
            }
            record(without_unmeasured(line))
            bar.advance(update.number, update.loss)
            passed = [stop for stop in stops if stop <= update.number]
            if passed and not (meet and trainer.ended):
                validate(passed[-1])
                stops = stops[len(passed) :]
            if history.ended(target):  # for all workers alike: they have measured the same
                break
        else:
            if meet:
                validate(trainer.batches.updates)
    return history, measured


def train_and_measure(
    trainer: Trainer, arm: str, settings: Settings, reporter: Reporter, record: Callable[[dict[str, Any]], None]
) -> Trained:
    """Train one arm on a worker as `train` does; then measure the task's metrics, and take the model's weights."""
    history, measured = train(trainer, arm, settings, reporter, record)
    with doing(f"measuring the arm {arm} at its end"):
        if measured is None:
            measured = trainer.measure(validation_examples(trainer, settings))
        weights = trainer.weights() if settings.observation.weights else None
        return Trained(history, measured, weights, trainer.model if isinstance(trainer.model, SavesItself) else None)


def validation_examples(trainer: Trainer, settings: Settings) -> int:
    """The number of held-out examples that have as many tokens as the settings ask for, on the average."""
    return math.ceil(settings.data.validation_tokens / trainer.task.example_tokens)


def validation_points(updates: int, *, to_target: bool) -> list[int]:
    """Lists the updates after which the validation loss is measured; the last update is always among them.

    Args:
        updates: the most updates that there can be.
        to_target: whether to measure at equal ratios of updates instead of at equal distances, so that the number of
            updates to a loss is known with the same relative precision everywhere.
    """
    if not to_target:
        return sorted(set(np.linspace(0, updates, VALIDATIONS + 1).round().astype(int).tolist()) - {0})
    points = [1]
    while points[-1] < updates:
        points.append(min(updates, math.ceil(TARGET_STEPS * points[-1])))
    return points
