"""How much time it costs to measure the gradient noise scale."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.experiments.training.settings import Settings
from bigbatch.training.trainer import Update

TURNS, UPDATES_A_TURN = 40, 3


def updates_of(*, measure_noise: bool) -> Iterator[Update]:
    """Trains one worker with four micro-batches of 16 examples, and yields its updates without end."""
    settings = Settings.of({"workers": 1, "micro_batch": 16, "accumulate": 4, "noise_scale": measure_noise})
    assembly = Assembly(settings, task_of(settings.data))
    strategy = STRATEGIES.load("ring")
    make = assembly.optimizer(settings.plan(), strategy)
    return assembly.trainer(strategy(Alone()), make, settings.plan(), torch.device("cpu"), examples=10**9).updates()


def noise_ratio() -> float:
    """Measures how many times as long an update takes if it measures the noise scale: a median over turns."""
    torch.set_num_threads(1)
    both = {measured: updates_of(measure_noise=measured) for measured in (False, True)}
    seconds: dict[bool, list[float]] = {measured: [] for measured in both}
    for turn in range(TURNS + 1):
        # Who comes first changes from turn to turn, so that neither always follows the other.
        for measured in (False, True) if turn % 2 else (True, False):
            started = time.perf_counter()
            for _ in itertools.islice(both[measured], UPDATES_A_TURN):
                pass
            if turn:
                seconds[measured].append(time.perf_counter() - started)
    return float(np.median(np.divide(seconds[True], seconds[False])))
