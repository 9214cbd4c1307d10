"""A claim of one's own, from which figures in files can be derived."""

from pathlib import Path

from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict


class Own(Claim):
    claim, source, criterion, minutes = "That one is one.", "Peano", "1 = 1", Minutes(0, 0)
    trains = False

    def examine(self) -> Finding:
        details = {"rows": "x", "columns": "x", "verdict": "x", "fit": 3}
        return Finding(Verdict.HELD, "So it is.", "nothing", [Column("a", "a")], [{"a": 1}], details)

    def draw(self, finding: Finding, path: Path) -> None:  # noqa: ARG002 - the frame's own signature
        path.write_text("")
