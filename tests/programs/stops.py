"""A user's file with a task that stops one rank in one phase; BIGBATCH_TEST_STOP says which, as in "preparing 1"."""

import atexit
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from bigbatch.comm.strategies import STRATEGIES
from bigbatch.tasks.language_modelling import LanguageModelling

PHASE, RANK = os.environ["BIGBATCH_TEST_STOP"].split()
OWN = next(os.environ[name] for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "RANK", "HOME") if name in os.environ)


batches: list[Any] = []
"""The splits of which this rank has made batches so far; the first is made before any update."""


def reach(phase: str) -> None:
    if (phase, OWN) == (PHASE, RANK):
        os.kill(os.getpid(), signal.SIGSTOP)


def on_opening(event: str, arguments: tuple[Any, ...]) -> None:
    """What is written has no hook of ours, but Python tells of every file that is opened."""
    names = {"writing": ".summary.", "drawing": ".comparison."}  # of the files that will take their places
    if event == "open" and "w" in str(arguments[1]) and names[PHASE] in str(arguments[0]):
        reach(PHASE)


reach("importing")
if PHASE in ("writing", "drawing"):
    sys.addaudithook(on_opening)
elif PHASE == "closing":
    atexit.register(reach, "closing")


class Stops(LanguageModelling):
    @classmethod
    def prepare(cls, settings: Any) -> Any:
        reach("preparing")
        if (PHASE, RANK) == ("slow", OWN):
            time.sleep(8)
        return super().prepare(settings)

    def batch(self, split: Any, examples: np.ndarray) -> Any:
        reach("warmup" if split == "training" and not batches else split)
        batches.append(split)
        return super().batch(split, examples)


class Connecting(STRATEGIES.load("ring")):
    @classmethod
    def connect(cls, *arguments: Any) -> Any:
        reach("connecting")
        return super().connect(*arguments)
