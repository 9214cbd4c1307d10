"""A run: a folder that holds its options, its metrics and its summary."""

import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

import numpy as np
import torch

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import damaged, read_json, read_lines, unwritable, write_whole
from bigbatch.comm.precisions import FP32
from bigbatch.comm.registry import Registry
from bigbatch.comm.schema import check
from bigbatch.experiments.runs.records import (
    METRICS_LINES,
    ComparisonSummary,
    FindingSummary,
    Measurements,
    RunSummary,
)

if TYPE_CHECKING:  # only whoever draws waits for Matplotlib
    from matplotlib.figure import Figure

FORMATS = (("computed in", "precision"), ("sent in", "wire"))
"""What a format of numbers is for, in words, and the option that names it."""

CONFIG, METRICS, SUMMARY, TRACE = "config.json", "metrics.jsonl", "summary.json", "trace.json"


MB = 2**20

LARGEST_METRICS = 1024 * MB
"""Largest metrics.jsonl that is read, in bytes: a million updates take about 500 MB."""


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder.

    Attributes:
        folder: the folder of the run.
        summary: the content of summary.json: the results.
        metrics: the lines of metrics.jsonl, in order: every update and every validation.
        remarks: sentences, without their full stops, about what is missing in the folder, or was cut off there.
    """

    folder: Path
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a finished run from its folder.

        Raises:
            ConfigurationError: there is no finished run in that folder, or one of its files is damaged.
        """
        summary = read_summary(folder)
        if not is_run(summary) or not os.path.lexists(folder / METRICS):
            raise ConfigurationError(
                f"{folder} holds no run of an experiment, and so no losses. Name the folder of a strategy's run or "
                "of a comparison."
            )
        metrics, cut = read_metrics(folder)
        remarks = [f"The last line of {folder / METRICS} was cut off while it was written, and is left out"] * cut
        told = {record["arm"] for record in metrics}
        remarks += [
            f"{folder / METRICS} says nothing about the arm {arm['name']}, whose losses are left out"
            for arm in summary["arms"]
            if arm["name"] not in told
        ]
        return cls(folder, summary, metrics, tuple(remarks))

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


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """The whole lines of a run's metrics, and whether there is a last one that was cut off."""
    what = f"The file {folder / METRICS}"
    lines, cut = read_lines(folder / METRICS, what, LARGEST_METRICS)
    last: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{what}, line {number},"
        kind = check(line, KindOfLine, where)["kind"]
        check(line, METRICS_LINES[kind], where)
        if kind == "update" and "worker" not in line:  # workers of servers on a network count their own
            before = last.get(line["arm"], -1)
            if line["number"] <= before:  # lines of two runs, for example
                raise damaged(where, f"it is about update {line['number']} of an arm that has come to {before}")
            last[line["arm"]] = line["number"]
    return lines, cut


class KindOfLine(TypedDict):
    """What every line of the metrics has."""

    kind: Literal["update", "validation"]


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


def is_run(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is that of an experiment's run over one strategy."""
    return _schema_of(summary) is RunSummary


def is_comparison(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is that of a comparison: of several runs with the same arms."""
    return _schema_of(summary) is ComparisonSummary


def _schema_of(summary: Mapping[str, Any]) -> type:
    """The schema that a summary should have, by what only such a summary holds."""
    for name, schema in (("figure", FindingSummary), ("arms", RunSummary), ("runs", ComparisonSummary)):
        if name in summary:
            return schema
    return Measurements


def runs_in(folder: Path) -> list[Run]:
    """Reads the run in a folder, or all runs in the folder of a comparison.

    Raises:
        ConfigurationError: there is no run, or one has not finished, or the folder of one holds another by now.
    """
    summary = read_summary(folder)
    if not is_comparison(summary):
        return [Run.read(folder)]
    runs = [Run.read(folder / folder_name(run["strategy"])) for run in summary["runs"]]
    for run, compared in zip(runs, summary["runs"], strict=True):
        if run.summary != compared:
            raise ConfigurationError(
                f"The folder {run.folder} holds another run than the one in the comparison {folder}. Compare anew, or "
                "name the folders of the runs."
            )
    return runs


def folder_name(strategy: str) -> str:
    """Returns the name of a strategy's folder inside the folder of a comparison."""
    return strategy.replace("/", "-").replace(":", "-")


def check_folders(strategies: Sequence[str]) -> None:
    """Refuses strategies of one comparison of which one would write into the folder of another.

    Raises:
        ConfigurationError: two names of strategies make the same folder; some systems do not tell a from A.
    """
    taken: dict[str, str] = {}
    for strategy in strategies:
        other = taken.setdefault(folder_name(strategy).casefold(), strategy)
        if other != strategy:
            raise ConfigurationError(
                f"The strategies {other} and {strategy} would have the same folder, {folder_name(strategy)}. Compare "
                "them from another folder, or rename a file, so that their names differ in more."
            )


def read_summary(folder: Path, schema: type | None = None) -> dict[str, Any]:
    """Reads the summary.json in the folder of a run, a comparison or a measurement.

    Args:
        folder: the folder.
        schema: what the summary must hold; None for what a summary of its sort holds.

    Raises:
        ConfigurationError: there is no such folder, or it has no summary that can be read, or that one is damaged.
    """
    if not _is_folder(folder):
        raise ConfigurationError(f"There is no folder {folder}. Name one that a run has written.")
    if os.path.lexists(folder / SUMMARY):  # a link to nowhere is damage, too
        what = f"The summary of {folder}"
        summary: dict[str, Any] = check(read_json(folder / SUMMARY, what), dict[str, Any], what)
        check(summary, schema or _schema_of(summary), what)
        if schema is None:
            runs = summary["runs"] if is_comparison(summary) else [summary] if is_run(summary) else []
            _check_arms(runs, what)
            _check_alike(runs, what)
        return summary
    if (folder / CONFIG).is_file() or (folder / METRICS).is_file():
        raise ConfigurationError(f"The run {folder} has not finished: it has no {SUMMARY}. Wait, or run it again.")
    inner = sorted(str(path.parent) for path in folder.glob(f"*/{SUMMARY}"))
    advice = f"name one of {', '.join(inner)}" if inner else "name one that a run has written"
    raise ConfigurationError(f"The folder {folder} is no run, since it has no {SUMMARY}: {advice}.")


def _check_arms(runs: Sequence[dict[str, Any]], what: str) -> None:
    """Refuse a run of which two arms have one name, since their metrics cannot be told apart."""
    for names in ([arm["name"] for arm in run["arms"]] for run in runs):
        if twice := [name for name in names if names.count(name) > 1]:
            raise damaged(what, f"two arms have the name {twice[0]}")


def _check_alike(runs: Sequence[dict[str, Any]], what: str) -> None:
    """Refuse runs of one comparison that have other arms than the first, or share a folder."""
    arms, strategies = [[arm["name"] for arm in run["arms"]] for run in runs], [run["strategy"] for run in runs]
    for number, names in enumerate(arms):
        if names != arms[0]:
            raise damaged(what, f"runs[{number}] has the arms {', '.join(names)}, and runs[0] {', '.join(arms[0])}")
        if strategies[number] in strategies[:number]:
            raise damaged(what, f"runs[{number}] has the strategy of another run, {strategies[number]}")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, for example
        return False


def read_config(folder: Path) -> dict[str, Any]:
    """What was asked for; empty if the folder does not say.

    Raises:
        ConfigurationError: its file cannot be read, or is damaged.
    """
    if not os.path.lexists(folder / CONFIG):
        return {}
    what = f"The configuration of {folder}"
    content: dict[str, Any] = check(read_json(folder / CONFIG, what), Measurements, what)
    return content


def formats_of(folder: Path) -> list[str]:
    """Says which formats of numbers a run was asked for, such as "computed in bf16"; the usual one is not said."""
    config = read_config(folder)
    return [f"{label} {config[key]}" for label, key in FORMATS if config.get(key, FP32) != FP32]


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
    except ValueError as error:  # Python's word for a zero byte in a name
        raise unwritable(folder, OSError(str(error)), option, "folder") from error
    except OSError as error:
        raise unwritable(folder, error, option, "folder") from error


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


OF_MODELS = "transformers"
"""The library whose version is part of the environment only where a model comes from it."""


def environment() -> dict[str, Any]:
    """Returns the environment of a run: the versions of the software, and the platform."""
    return {
        "bigbatch": bigbatch.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        **({OF_MODELS: sys.modules[OF_MODELS].__version__} if OF_MODELS in sys.modules else {}),
        "platform": platform.platform(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all; NaN and infinity become null, since JSON cannot write them.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, as_json(content))


def as_json(content: dict[str, Any]) -> str:
    """The text of a JSON file; see `write_json`."""
    return json.dumps(finite(content), indent=2, default=plain_value) + "\n"


def plain_value(value: Any) -> Any:
    """A user's own number, of NumPy or torch, as one that JSON has; anything else as text, so that the rest is kept."""
    try:
        return finite(value.item())
    except (AttributeError, ValueError, RuntimeError, TypeError):
        return str(value)


def finite(value: Any) -> Any:
    """The same value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
