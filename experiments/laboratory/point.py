"""Points: single runs, each a command line whose run is kept."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARM = "accumulated"
"""The arm whose plan is just what the options say."""

DEVICE = "cpu"
"""What a point is trained on, so that its name says so on every machine, and as many as there are cores can train."""


@dataclass(frozen=True)
class Point:
    """One training in one process: of one worker, or on a simulated clock of several.

    Attributes:
        options: an experiment's option, with underscores -> its value; True for a flag, None for what is left out.
            What is not named is as the program has it by default, but for the device, which is the CPU.
        strategy: its name; for one worker, all are the same.
    """

    options: Mapping[str, Any]
    strategy: str = "ring"

    def words(self) -> list[str]:
        """The command line, from the strategy on."""
        workers = {} if self.options.get("simulate") else {"workers": 1}
        words = [self.strategy]
        for name, value in {**workers, "arms": ARM, "device": DEVICE, **self.options}.items():
            if value is not None:
                flag = f"--{name.replace('_', '-')}"
                words += [flag] if value is True else [flag, str(value)]
        return words

    def command(self) -> str:
        """What a user would type to make the same run."""
        return shlex.join(["bigbatch-exp", *self.words()])
