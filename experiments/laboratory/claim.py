"""A claim, and what comes of examining it: the frame into which every figure about a claim fits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from bigbatch.experiments.laboratory.laboratory import Laboratory
from bigbatch.experiments.runs.run import environment


class Verdict(Enum):
    """What became of a claim here."""

    HELD = "held"
    FAILED = "failed"
    UNTOLD = "could not be told"


@dataclass(frozen=True)
class Column:
    """A column of a figure's table.

    Attributes:
        key: of the rows.
        label: its head, with the unit.
        decimals: of its numbers; None for as many as tell it to three digits.
    """

    key: str
    label: str
    decimals: int | None = 0

    def text(self, value: Any) -> str:
        """A cell."""
        if value is None:
            return "-"
        if isinstance(value, bool | str):
            return str(value)
        return f"{value:,.3g}" if self.decimals is None else f"{value:,.{self.decimals}f}"


@dataclass(frozen=True)
class Finding:
    """What came of examining a claim, in types that JSON can write.

    Attributes:
        verdict: whether it held.
        sentence: why, with the numbers that it was decided by.
        asked: what was run, in a sentence or two.
        columns: of the table.
        rows: of the table; they may hold more than the columns show.
        details: what else the figure draws, and other commands read.
        runs: folders of all the runs behind it.
    """

    verdict: Verdict
    sentence: str
    asked: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict)
    runs: Sequence[Path] = ()


@dataclass(frozen=True)
class Minutes:
    """How long a figure takes on two cores, about, when none of its runs are there yet."""

    default: float
    quick: float


class Claim(ABC):
    """A claim that can be examined here: a figure.

    Args:
        laboratory: trains the points.
        quick: whether to examine it in its smallest form.
    """

    claim: ClassVar[str]
    """What is said to be so, in a sentence."""

    source: ClassVar[str]
    """Who says so, and where."""

    criterion: ClassVar[str]
    """When it has held, and when it has failed; written before anything was run."""

    minutes: ClassVar[Minutes]

    trains: ClassVar[bool] = True
    """Whether it asks the laboratory for points; if not, neither the user's text nor the processes matter to it."""

    def __init__(self, laboratory: Laboratory, *, quick: bool) -> None:
        self.laboratory = laboratory
        self.quick = quick

    @abstractmethod
    def examine(self) -> Finding:
        """Run what it takes, and decide.

        Raises:
            BigBatchError: something could not be run.
        """

    @abstractmethod
    def draw(self, finding: Finding, path: Path) -> None:
        """Draw what `examine` has found, to a PNG file."""


def summary_of(name: str, claim: Claim, finding: Finding) -> dict[str, Any]:
    """All that a figure's folder says about it, in types that JSON can write; its details replace nothing else."""
    return {
        **finding.details,
        "figure": name,
        "quick": claim.quick,
        "claim": claim.claim,
        "source": claim.source,
        "criterion": claim.criterion,
        "asked": finding.asked,
        "verdict": finding.verdict.value,
        "sentence": finding.sentence,
        "columns": [asdict(column) for column in finding.columns],
        "rows": [dict(row) for row in finding.rows],
        "runs": [str(run) for run in finding.runs],
        "environment": environment(),
    }
