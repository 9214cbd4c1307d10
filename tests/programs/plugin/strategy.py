from dataclasses import dataclass

from bigbatch.comm.kinds import Flag
from bigbatch.comm.options import Options, option
from bigbatch.comm.strategies import STRATEGIES


@dataclass(frozen=True)
class Choices(Options):
    loud: bool = option(False, Flag(), "Say so.")


class Mine(STRATEGIES.load("ring")):
    """A ring of somebody else's."""

    options = Choices()

    def statistics(self):
        """Whether it was to be loud."""
        return {"loud": self.options.loud, "staleness": {}, "gradients_dropped": 0}
