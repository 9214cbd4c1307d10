"""A run: a folder that holds its options, its metrics and its summary."""

import errno
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np
import torch

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import Registry
from bigbatch.comm.tracing.perfetto import write_trace
from bigbatch.comm.wires.recording import Span

if TYPE_CHECKING:  # only whoever draws waits for Matplotlib
    from matplotlib.figure import Figure

CONFIG, METRICS, SUMMARY, TRACE = "config.json", "metrics.jsonl", "summary.json", "trace.json"


FULL = (errno.ENOSPC, errno.EDQUOT)


class RunWriter:
    """Writes a run's folder while the run is in progress.

    Args:
        folder: the folder, which is made if it does not exist; an earlier run's files in it are replaced.

    Raises:
        ConfigurationError: the folder cannot be written.
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
            raise unwritable(folder, error) from error

    def config(self, config: dict[str, Any]) -> None:
        """Write config.json: the options that were asked for, and the environment of the run."""
        write_json(self.folder / CONFIG, config)

    def metric(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, such as the record of an update or a validation."""
        self._metrics.write(json.dumps(_finite(record)) + "\n")

    def trace(self, ranks: Sequence[Sequence[Span]]) -> None:
        """Write trace.json: every rank's spans so far."""
        write_trace(self.folder / TRACE, ranks)

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json: the results of the finished run."""
        write_json(self.folder / SUMMARY, summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder.

    Attributes:
        folder: the folder of the run.
        summary: the content of summary.json: the results.
        metrics: the lines of metrics.jsonl, in order: every update and every validation.
    """

    folder: Path
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a finished run from its folder.

        Raises:
            ConfigurationError: there is no finished run in that folder.
        """
        summary = read_summary(folder)
        if not is_run(summary) or not (folder / METRICS).is_file():
            raise ConfigurationError(
                f"{folder} holds no run of an experiment, and so no losses. Name the folder of a strategy's run or "
                "of a comparison."
            )
        lines = _text(folder / METRICS).splitlines()
        return cls(folder, summary, [_parsed(line, folder / METRICS) for line in lines])

    def config(self) -> dict[str, Any]:
        """What was asked for; empty if the folder does not say.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return read_config(self.folder)

    def curve(self, arm: str, kind: str) -> list[dict[str, Any]]:
        """Returns the metrics of one kind, "update" or "validation", of one arm, in order."""
        return [record for record in self.metrics if record["arm"] == arm and record["kind"] == kind]

    @property
    def updates(self) -> "Records":
        """The records of every update of every arm, in order."""
        return Records(record for record in self.metrics if record["kind"] == "update")

    @property
    def validations(self) -> "Records":
        """The records of every validation of every arm, in order; losses are in nats per token."""
        return Records(record for record in self.metrics if record["kind"] == "validation")

    def figure(self, name: str = "comparison") -> "Figure":
        """Draws a figure of this run, which a notebook shows and `savefig` writes to a file.

        Args:
            name: name of the figure in `DRAWINGS`: "comparison", "losses" or "staleness".

        Raises:
            ConfigurationError: there is no figure of that name, or this run has nothing to draw in it.
        """
        figure: Figure = DRAWINGS.load(name)([self])
        return figure


class Records(list[dict[str, Any]]):
    """A list of records, such as the lines of a run's metrics; each record is a dictionary."""

    def to_pandas(self) -> Any:
        """Converts the records to a pandas data frame, with a column for each name.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError:
            raise ConfigurationError(
                "pandas is not installed, so that there are no data frames: pip install pandas, or use the records as "
                "they are, a list of dictionaries."
            ) from None
        return pd.DataFrame(self)


DRAWINGS = Registry(
    "drawing",
    "bigbatch.drawings",
    {
        "comparison": "bigbatch.experiments.figures.comparison:comparison",
        "losses": "bigbatch.experiments.figures.overlay:overlaid",
        "staleness": "bigbatch.experiments.figures.staleness:staleness",
    },
)
"""Figures by name: functions of a sequence of runs. Other packages add theirs in the group "bigbatch.drawings"."""


def first_reaching(places: Sequence[float], losses: Sequence[float | None], target: float) -> float | None:
    """Finds the place where a loss curve first reaches a target, by linear interpolation over the place's logarithm.

    Args:
        places: ascending places of 0 or more: updates, tokens or seconds.
        losses: losses at those places, in nats; None for a loss that is not a number.
        target: the loss to reach, in nats.

    Returns:
        The place; None if the curve never reaches the target.
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


def is_run(summary: dict[str, Any]) -> bool:
    """Whether a summary is that of an experiment's run over one strategy."""
    return "strategy" in summary and _dictionaries(summary.get("arms"))


def is_comparison(summary: dict[str, Any]) -> bool:
    """Whether a summary is that of a comparison: of several runs with the same arms."""
    runs = summary.get("runs")
    return _dictionaries(runs) and all(is_run(run) for run in runs)


def _dictionaries(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def runs_in(folder: Path) -> list[Run]:
    """Reads the run in a folder, or all runs in the folder of a comparison.

    Raises:
        ConfigurationError: there is no run, or one has not finished.
    """
    summary = read_summary(folder)
    if not is_comparison(summary):
        return [Run.read(folder)]
    return [Run.read(folder / folder_name(run["strategy"])) for run in summary["runs"]]


def folder_name(strategy: str) -> str:
    """Returns the name of a strategy's folder inside the folder of a comparison."""
    return strategy.replace("/", "-").replace(":", "-")


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the summary.json in the folder of a run, a comparison or a measurement.

    Raises:
        ConfigurationError: there is no such folder, or it has no summary that can be read.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}. Name one that a run has written.")
    if (folder / SUMMARY).is_file():
        return _parsed(_text(folder / SUMMARY), folder / SUMMARY)
    if (folder / CONFIG).is_file() or (folder / METRICS).is_file():
        raise ConfigurationError(f"The run {folder} has not finished: it has no {SUMMARY}. Wait, or run it again.")
    inner = sorted(str(path.parent) for path in folder.glob(f"*/{SUMMARY}"))
    advice = f"name one of {', '.join(inner)}" if inner else "name one that a run has written"
    raise ConfigurationError(f"The folder {folder} is no run, since it has no {SUMMARY}: {advice}.")


def read_config(folder: Path) -> dict[str, Any]:
    """What was asked for; empty if the folder does not say.

    Raises:
        ConfigurationError: its file cannot be read.
    """
    return _parsed(_text(folder / CONFIG), folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"The file {path} cannot be read: {reason}. Run it again.") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"The file {path} is damaged ({error}). Run it again.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"The file {path} is damaged: it should hold names and values. Run it again.")
    return content


def names_of(folders: Sequence[Path]) -> list[str]:
    """Names several different folders: each by its own name, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = ["/".join(own[-1:]) for own in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        names = [
            "/".join(own[-depth:]) if names.count(name) > 1 else name for own, name in zip(parts, names, strict=True)
        ]
    return names


def trace_of(run: Path) -> Path:
    """Finds the trace.json in a run's folder; a path of a file is returned as it is.

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


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder and its parents, unless they exist.

    Args:
        folder: the folder to make.
        option: the option with which the user can name another folder, for the error message.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error, option) from error


def unwritable(folder: Path, error: OSError, option: str = "--out") -> ConfigurationError:
    """Makes the error for a folder that cannot be written.

    Args:
        folder: the folder.
        error: the operating system's error.
        option: the option with which the user can name another folder.
    """
    advice = "Make room there, or name" if error.errno in FULL else "Name"
    return ConfigurationError(
        f"The folder {folder} cannot be written: {error.strerror}. {advice} another with {option}."
    )


def new_folder(name: str) -> Path:
    """Makes a new folder below ./runs for a run of this name, which no other run can have: who makes it, has it.

    Raises:
        ConfigurationError: the folder cannot be made.
    """
    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    make_folder(stem.parent)
    for number in count(1):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # that of a run which was started in the same second
            continue
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder
    raise AssertionError("there is always another number")


def chosen_folder(out: Path | None, name: str) -> Path:
    """Makes the folder that the user chose, unless it exists, or else a new one below ./runs.

    Args:
        out: the folder that the user chose, if so.
        name: what is done there, for the name of a new folder.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """
    if out is None:
        return new_folder(name)
    make_folder(out)
    return out


def environment() -> dict[str, Any]:
    """Returns the environment of a run: the versions of the software, and the platform."""
    return {
        "bigbatch": bigbatch.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all; NaN and infinity become null, since JSON cannot write them.

    Raises:
        OSError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
