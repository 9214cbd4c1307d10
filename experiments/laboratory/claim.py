"""Claims and findings: the base class of every figure about a claim, and the result of examining one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from bigbatch.comm.schema import plain
from bigbatch.experiments.laboratory.laboratory import Laboratory
from bigbatch.experiments.runs.records import FindingSummary
from bigbatch.experiments.runs.run import environment


class Verdict(Enum):
    """The result of examining a claim: it held, it failed, or the measurements cannot decide."""

    HELD = "held"
    FAILED = "failed"
    UNTOLD = "could not be told"


@dataclass(frozen=True)
class Column:
    """A column of a finding's table.

    Attributes:
        key: the key in each row whose value the column shows.
        label: head of the column, with the unit.
        decimals: number of decimals; None for three significant digits.
    """

    key: str
    label: str
    decimals: int | None = 0

    def text(self, value: Any) -> str:
        """Formats a value as the text of a cell in this column; "-" for None."""
        if value is None:
            return "-"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return str(value)
        return f"{value:,.3g}" if self.decimals is None else f"{value:,.{self.decimals}f}"


@dataclass(frozen=True)
class Finding:
    """The result of examining a claim, in types that JSON can write.

    Attributes:
        verdict: whether the claim held.
        sentence: why, with the numbers that decided it.
        asked: what was run, in a sentence or two.
        columns: columns of the table.
        rows: rows of the table; they may hold more entries than the columns show.
        details: other data that the figure draws or other commands read.
        runs: folders of all runs behind the finding.
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
    """About how many minutes a figure takes on two cores if none of its runs exist yet, by default and with --quick."""

    default: float
    quick: float


class Claim(ABC):
    """Base class of a claim that can be examined on this machine; each has a figure.

    Args:
        laboratory: the laboratory that trains the points.
        quick: whether to examine the claim in its smallest form.
    """

    claim: ClassVar[str]
    """The claim itself, in a sentence."""

    source: ClassVar[str]
    """The papers that make the claim."""

    criterion: ClassVar[str]
    """When the claim counts as held and when as failed; it was written before anything was run."""

    minutes: ClassVar[Minutes]

    trains: ClassVar[bool] = True
    """Whether the claim trains anything; if not, the options about the text and the processes do not apply."""

    def __init__(self, laboratory: Laboratory, *, quick: bool) -> None:
        self.laboratory = laboratory
        self.quick = quick

    @abstractmethod
    def examine(self) -> Finding:
        """Run what the claim needs, and decide whether it held.

        Raises:
            BigBatchError: something could not be run.
        """

    @abstractmethod
    def draw(self, finding: Finding, path: Path) -> None:
        """Draw the finding of `examine` to a PNG file."""


def summary_of(name: str, claim: Claim, finding: Finding) -> dict[str, Any]:
    """Makes the content of a figure's summary.json; the finding's details cannot replace its other entries."""
    written: FindingSummary = {
        "figure": name,
        "quick": claim.quick,
        "claim": claim.claim,
        "source": claim.source,
        "criterion": claim.criterion,
        "asked": finding.asked,
        "verdict": finding.verdict.value,
        "sentence": finding.sentence,
        "columns": [{"key": one.key, "label": one.label, "decimals": one.decimals} for one in finding.columns],
        "rows": [dict(row) for row in finding.rows],
        "runs": [str(run) for run in finding.runs],
        "environment": environment(),
    }
    return {**finding.details, **plain(written)}
