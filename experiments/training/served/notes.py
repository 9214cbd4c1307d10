"""Notes: records of a worker's metrics, which it sends to its servers as rows of numbers."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.errors import MalformedError
from bigbatch.comm.update import Outcome
from bigbatch.experiments.training.history import NOT_ALWAYS, History, without_unmeasured
from bigbatch.training.trainer import Update

UPDATE, VALIDATION, PEAK = 0.0, 1.0, 2.0
"""The kinds of notes, as the first number of a note."""

UPDATE_FIELDS = [field.name for field in dataclasses.fields(Update)]
NOTED: dict[float, list[str]] = {
    UPDATE: [*UPDATE_FIELDS, "noise_scale", "compute_seconds", "total_seconds"],
    VALIDATION: ["update", "tokens", "seconds", "loss", "score"],
    PEAK: ["bytes"],
}
KINDS = {UPDATE: "update", VALIDATION: "validation", PEAK: "peak"}
WHOLE = {"number", "tokens", "workers", "total_tokens", "bytes_sent", "update", "bytes"}
"""Names of values that are whole numbers, and so must be finite."""


def row_of(record: dict[str, Any], score: str | None = None) -> NDArray[np.float64]:
    """Converts a record of metrics to a note, a row of float64 numbers.

    Args:
        record: the record.
        score: name of the metric that a record of a validation has, if the task has one.
    """
    kind = next(number for number, name in KINDS.items() if name == record["kind"])
    complete = {**dict.fromkeys(NOT_ALWAYS, math.nan), "score": math.nan, **record}
    if score is not None and "metrics" in record:
        complete["score"] = record["metrics"].get(score, math.nan)
    if "outcome" in complete:
        complete["outcome"] = Outcome(complete["outcome"]).code
    return np.array([kind, *(complete[name] for name in NOTED[kind])], dtype=np.float64)


def record_of(row: NDArray[np.float64], score: str | None = None) -> dict[str, Any]:
    """Converts a note back to a record of metrics.

    Args:
        row: the note.
        score: name of the metric that a note of a validation has, if the task has one.

    Raises:
        MalformedError: the row is not a valid note.
    """
    try:
        kind, *numbers = row.tolist()
        values: dict[str, Any] = dict(zip(NOTED[kind], numbers, strict=True))
        for name in WHOLE & values.keys():
            values[name] = int(values[name])
    except (KeyError, ValueError, OverflowError) as error:
        raise MalformedError(f"A note of {len(row)} numbers says nothing that is known here") from error
    if "outcome" in values:
        outcome = Outcome.of(values["outcome"])
        values = without_unmeasured({**values, "outcome": outcome, "applied": outcome is Outcome.APPLIED})
    if "score" in values:
        value = values.pop("score")
        if score is not None and math.isfinite(value):
            values["metrics"] = {score: value}
    return {"kind": KINDS[kind], **values}


def rank_of(notes: Iterable[tuple[float, Sequence[float]]], score: str | None = None) -> dict[str, Any] | None:
    """Makes the entry of `ranks` for `summarise` from one worker's notes; None if the worker never made an update.

    The entry has the `metrics` of the worker's last validation, too.
    """
    history, peak = History(), 0
    for _, row in notes:
        record = record_of(np.array(row), score)
        if record["kind"] == "update":
            history.add(Update(**{name: record[name] for name in UPDATE_FIELDS if name in record}))
        elif record["kind"] == "validation":
            history.validated(
                record["update"], record["tokens"], record["seconds"], record["loss"], record.get("metrics")
            )
        else:
            peak = record["bytes"]
    if not history.updates:
        return None
    metrics = dict(history.validations[-1].metrics) if history.validations else {}
    return {"peak": peak, "history": history.totals(), "statistics": {}, "metrics": metrics}


class Busy:
    """Measures how long at least one worker was making an update, from updates that are reported when they end.

    Attributes:
        seconds: seconds so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._reached = -math.inf

    def add(self, begin: float, end: float) -> None:
        """Adds an update from `begin` to `end`, in seconds on any clock; updates come in the order of their ends."""
        self.seconds += max(0.0, end - max(begin, self._reached))
        self._reached = max(self._reached, end)
