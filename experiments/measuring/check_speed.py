"""How much time it costs to see to it that what torch writes is what is trained."""

import time

import numpy as np
import torch

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.experiments.training.settings import Settings

TURNS = 30


def check(parameters: FlatParameters, micro_batches: int) -> None:
    """Does all that an update does for it: what comes before and after each backward, each push, and the step."""
    places = range(len(parameters.names))
    for _ in range(micro_batches):
        with parameters.views.adding():
            pass
    parameters.views.complete(places)
    parameters.check()
    parameters.refuse()
    with parameters.views.without(parameters.views.absent([parameters.gradients])):
        pass
    parameters.value_views.restore()


def check_ratio() -> float:
    """Measures how much of an update of the default model the checks take: a median over turns."""
    torch.set_num_threads(1)
    settings = Settings.of({"workers": 1, "micro_batch": 16, "accumulate": 4})
    assembly = Assembly(settings, task_of(settings.data))
    strategy = STRATEGIES.load("ring")
    make = assembly.optimizer(settings.plan(), strategy)
    trainer = assembly.trainer(strategy(Alone()), make, settings.plan(), torch.device("cpu"), examples=10**9)
    ratios = []
    for update, _ in zip(trainer.updates(), range(TURNS + 1), strict=False):
        started = time.perf_counter()
        check(trainer.parameters, settings.plan().accumulation)
        ratios.append((time.perf_counter() - started) / update.seconds)
    return float(np.median(ratios[1:]))
