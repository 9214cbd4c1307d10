"""Training one arm on a worker: updates, and validations between them."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from bigbatch.experiments.training.history import History, without_unmeasured
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.settings import Settings
from bigbatch.training.trainer import Trainer

VALIDATIONS = 8
"""How often an arm measures its validation loss while it trains, at equal distances; once before, too."""

TARGET_STEPS = 1.1
"""On the way to a target the validation loss is measured whenever the updates have become so many times as many."""


def train(
    trainer: Trainer, arm: str, settings: Settings, reporter: Reporter, record: Callable[[dict[str, Any]], None]
) -> History:
    """Train one arm on a worker, measuring the validation loss now and then.

    Args:
        trainer: of that worker.
        arm: its name.
        settings: what the user asked for.
        reporter: tells how far it is.
        record: takes a line about every update and every validation.
    """
    history = History()
    validation_examples = math.ceil(settings.data.validation_tokens / trainer.task.example_tokens)
    updates = trainer.plan.updates(trainer.examples)
    stops = validation_points(updates, to_target=settings.observation.target is not None)

    def validate(number: int) -> None:
        loss = trainer.validate(validation_examples)
        if loss is not None:  # else another worker looks
            history.validated(number, history.tokens, history.seconds, loss)
            record({"kind": "validation", "arm": arm, **asdict(history.validations[-1])})

    meet = trainer.plan.workers > 1  # once all have ended, whatever the number of their last update is
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
    """Train one arm on a worker, see `train`; then have the first worker measure what else the task measures."""
    history = train(trainer, arm, settings, reporter, record)
    return history, trainer.metrics(math.ceil(settings.data.validation_tokens / trainer.task.example_tokens))


def validation_points(updates: int, *, to_target: bool) -> list[int]:
    """After which updates the validation loss is measured; the last is always among them.

    Args:
        updates: how many there are, at most.
        to_target: whether to measure at equal ratios, to know how many updates a loss took to that precision, instead
            of at equal distances.
    """
    if not to_target:
        return sorted(set(np.linspace(0, updates, VALIDATIONS + 1).round().astype(int).tolist()) - {0})
    points = [1]
    while points[-1] < updates:
        points.append(min(updates, math.ceil(TARGET_STEPS * points[-1])))
    return points
