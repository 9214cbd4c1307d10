"""A run: a folder that holds what was asked, what happened and what came out."""

import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.trace import Span, write_trace

CONFIG, METRICS, SUMMARY, TRACE = "config.json", "metrics.jsonl", "summary.json", "trace.json"


class RunWriter:
    """Writes a run's folder as it happens.

    Args:
        folder: made if it is not there; an earlier run's files in it are replaced.

    Raises:
        ConfigurationError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)
        try:
            for stale in (SUMMARY, TRACE):
                (folder / stale).unlink(missing_ok=True)
            # Line by line, so that an interrupted run leaves whole lines.
            self._metrics = (folder / METRICS).open("w", buffering=1, encoding="utf-8")
        except OSError as error:
            raise _unwritable(folder, error) from error

    def config(self, config: dict[str, Any]) -> None:
        """Write down what was asked for, and on what."""
        write_json(self.folder / CONFIG, config)

    def metric(self, record: dict[str, Any]) -> None:
        """Add a line to what happened."""
        self._metrics.write(json.dumps(_finite(record)) + "\n")

    def trace(self, ranks: Sequence[Sequence[Span]]) -> None:
        """Write down what every rank did when, so far."""
        write_trace(self.folder / TRACE, ranks)

    def summary(self, summary: dict[str, Any]) -> None:
        """Write down what came out."""
        write_json(self.folder / SUMMARY, summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()


@dataclass(frozen=True)
class Run:
    """A run as read back from its folder.

    Attributes:
        folder: where it lies.
        summary: what came out.
        metrics: what happened, in order.
    """

    folder: Path
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a run back.

        Raises:
            ConfigurationError: there is no finished run in that folder.
        """
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigurationError(f"There is no finished run in {folder}: {error}.") from error
        return cls(folder, summary, [json.loads(line) for line in lines])

    def curve(self, arm: str, kind: str) -> list[dict[str, Any]]:
        """The metrics of one kind, "update" or "validation", of one arm."""
        return [record for record in self.metrics if record["arm"] == arm and record["kind"] == kind]


def first_reaching(places: Sequence[float], losses: Sequence[float | None], target: float) -> float | None:
    """Where a curve first is as low as the target, between two places on a straight line over the place's logarithm.

    Args:
        places: ascending, and not below 0: updates, tokens or seconds.
        losses: at those places, in nats; None is no number.
        target: in nats.

    Returns:
        None if it never is.
    """
    before: tuple[float, float] | None = None
    for place, loss in zip(places, losses, strict=True):
        if loss is None or not math.isfinite(loss):
            continue
        if loss <= target:
            if before is None or before[0] <= 0 or place <= before[0]:
                return place
            share = (before[1] - target) / (before[1] - loss)
            return float(before[0] * (place / before[0]) ** share)
        before = place, loss
    return None


def trace_of(run: Path) -> Path:
    """The trace of a run's folder; a file is taken to be one itself.

    Raises:
        ConfigurationError: there is no such run, or it wrote no trace.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise ConfigurationError(f"There is no run {run}. Name the folder that a run with --trace has written.")
    if not (run / TRACE).is_file():
        inner = sorted(path.parent for path in run.glob(f"*/{TRACE}"))
        advice = f"name one of {', '.join(map(str, inner))}" if inner else "run again with --trace"
        raise ConfigurationError(f"There is no {TRACE} in {run}: {advice}.")
    return run / TRACE


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless they are there.

    Raises:
        ConfigurationError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"The folder {folder} cannot be written: {error.strerror}. Name another with --out.")


def new_folder(name: str) -> Path:
    """A folder for a run of that name that is not there yet, below ./runs."""
    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = stem, 1
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return folder


def environment() -> dict[str, Any]:
    """What a run was made with and on."""
    return {
        "bigbatch": bigbatch.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; what is not a finite number becomes null, since JSON has no word for it."""
    path.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
