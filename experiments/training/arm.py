"""Training one arm on a worker: updates, and validations between them."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from bigbatch.comm.wires.life import doing
from bigbatch.experiments.training.history import History, without_unmeasured
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.settings import Settings
from bigbatch.training.trainer import Trainer

VALIDATIONS = 8
"""Number of times that an arm validates while it trains, at equal distances, after validating once before it."""

TARGET_STEPS = 1.1
"""Ratio of the numbers of updates at two successive validations while an arm trains to a target."""


def train(
    trainer: Trainer, arm: str, settings: Settings, reporter: Reporter, record: Callable[[dict[str, Any]], None]
) -> History:
    """Train one arm on a worker, and measure the validation loss now and then.

    Args:
        trainer: the worker's trainer.
        arm: name of the arm.
        settings: the settings of the experiment.
        reporter: shows the progress.
        record: called with a record of every update and every validation.
    """
    history = History()
    validation_examples = math.ceil(settings.data.validation_tokens / trainer.task.example_tokens)
    updates = trainer.plan.updates(trainer.examples)
    stops = validation_points(updates, to_target=settings.observation.target is not None)

    def validate(number: int) -> None:
        with doing(f"validating the arm {arm}"):
            loss = trainer.validate(validation_examples)
        if loss is not None:  # else another worker looks
            history.validated(number, history.tokens, history.seconds, loss)
            record({"kind": "validation", "arm": arm, **asdict(history.validations[-1])})

    meet = trainer.plan.workers > 1  # once all have ended, whatever the number of their last update is
    with doing(f"computing the first micro-batch of the arm {arm}"):
        trainer.warm_up()
    validate(0)
    with reporter.arm(arm, updates) as bar:
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
            if history.ended(settings.observation.target):  # for all workers alike: they have measured the same
                break
        else:
            if meet:
                validate(updates)
    return history


def train_and_measure(
    trainer: Trainer, arm: str, settings: Settings, reporter: Reporter, record: Callable[[dict[str, Any]], None]
) -> tuple[History, dict[str, float] | None]:
    """Train one arm on a worker as `train` does; then worker 0 measures the task's other metrics."""
    history = train(trainer, arm, settings, reporter, record)
    with doing(f"measuring the arm {arm} at its end"):
        return history, trainer.metrics(math.ceil(settings.data.validation_tokens / trainer.task.example_tokens))


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
