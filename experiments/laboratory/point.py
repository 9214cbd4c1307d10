"""Points: single runs in one process, each kept under a name for everything that was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigbatch.experiments.training.settings import Request

ARM = "accumulated"
"""The only arm of a point: the one whose plan is exactly what the options say."""

DEVICE = "cpu"
"""The device of every point: a point has the same name on every machine, and each core can train one."""


@dataclass(frozen=True)
class Point:
    """One training in one process: of one worker, or of several on a simulated clock.

    Attributes:
        options: values of an experiment's options, by name; None leaves an option out. Options that are left out have
            the program's defaults, except for the device, which is the CPU.
        strategy: name of the strategy; for a single worker, all strategies do the same.
    """

    options: Mapping[str, Any]
    strategy: str = "ring"

    def request(self) -> Request:
        """Makes the request for an experiment that this point stands for.

        Raises:
            ConfigurationError: there is no such option or strategy, or an option does not take its value.
        """
        workers = {} if self.options.get("simulate") else {"workers": 1}
        options = {**workers, "arms": ARM, "device": DEVICE, **self.options}
        return Request.of(self.strategy, {name: value for name, value in options.items() if value is not None})

    def command(self) -> str:
        """Returns the command line that a user would type to make the same run."""
        return self.request().command()
