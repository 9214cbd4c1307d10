from matplotlib.figure import Figure as Canvas

from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict


class Figure(Claim):
    """Whether one is one."""

    claim = "One is one."
    source = "Nobody"
    criterion = "held if it is"
    minutes = Minutes(0.1, 0.1)
    trains = False

    def examine(self):
        return Finding(Verdict.HELD, "It is.", "Nothing.", (Column("one", "one"),), [{"one": 1}])

    def draw(self, finding, path):
        Canvas().savefig(path)
