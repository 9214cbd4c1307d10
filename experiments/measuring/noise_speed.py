"""What measuring the gradient noise scale costs."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.training.experiment import task_named
from bigbatch.models.decoder import Transformer, TransformerShape
from bigbatch.optimizers import optimizer_named
from bigbatch.training.batches import derive_plan
from bigbatch.training.trainer import Trainer, Update

CONTEXT, VOCABULARY, LAYERS, WIDTH, HEADS = 64, 1024, 2, 96, 4
"""An experiment's own, unless it is asked for others."""

TURNS, UPDATES_A_TURN = 40, 3


def updates_of(*, measure_noise: bool) -> Iterator[Update]:
    """Updates of one worker with four micro-batches of 16, without end."""
    task = task_named("language-modelling", None, CONTEXT, VOCABULARY)
    model = Transformer(TransformerShape(task.vocabulary_size, CONTEXT, LAYERS, WIDTH, HEADS))
    parameters = FlatParameters(model)
    strategy = STRATEGIES.load("ring")(Alone())
    strategy.start(parameters, optimizer_named("adamw", 1e-3))
    plan = derive_plan(workers=1, micro_batch=16, accumulation=4)
    return Trainer(model, task, strategy, parameters, plan, 10**9, measure_noise=measure_noise).updates()


def noise_ratio() -> float:
    """How many times as long an update takes with the noise scale measured: the median of turn against turn."""
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
