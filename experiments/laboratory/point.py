"""Points: single runs in one process, each kept under a name for all that it was asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigbatch.experiments.training.settings import Request

ARM = "accumulated"
"""The arm whose plan is just what the options say."""

DEVICE = "cpu"
"""What a point is trained on, so that its name says so on every machine, and as many as there are cores can train."""


@dataclass(frozen=True)
class Point:
    """One training in one process: of one worker, or on a simulated clock of several.

    Attributes:
        options: an experiment's option -> its value; None for what is left out. What is not named is as the program
            has it by default, but for the device, which is the CPU.
        strategy: its name; for one worker, all are the same.
    """

    options: Mapping[str, Any]
    strategy: str = "ring"

    def request(self) -> Request:
        """What is asked for.

        Raises:
            ConfigurationError: there is no such option or strategy, or an option does not take its value.
        """
        workers = {} if self.options.get("simulate") else {"workers": 1}
        options = {**workers, "arms": ARM, "device": DEVICE, **self.options}
        return Request.of(self.strategy, {name: value for name, value in options.items() if value is not None})

    def command(self) -> str:
        """What a user would type to make the same run."""
        return self.request().command()
