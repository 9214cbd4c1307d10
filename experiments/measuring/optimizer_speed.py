"""How fast our own optimisers are, beside torch's."""

import time

import numpy as np
import torch

from bigbatch.comm.parameters import FlatParameters
from bigbatch.experiments.measuring.race import LEARNING_RATE, RACED
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.experiments.training.settings import Settings
from bigbatch.optimizers.standard import optimizer_named

TURNS, STEPS_A_TURN = 30, 10


def steps_in_turns(names: tuple[str, ...]) -> dict[str, list[float]]:
    """Seconds that a step on 4 million parameters takes on one thread, turn by turn, of every optimiser.

    Args:
        names: in the registry of optimisers; they take turns, each on parameters of its own.
    """
    torch.set_num_threads(1)
    settings = Settings.of(RACED)
    assembly = Assembly(settings, task_of(settings.data))
    optimizers = {}
    for name in names:
        parameters = FlatParameters(assembly.model())
        generator = torch.Generator().manual_seed(0)
        parameters.gradients.copy_(1e-3 * torch.randn(len(parameters.gradients), generator=generator))
        optimizers[name] = optimizer_named(name, LEARNING_RATE)(parameters.named_parameters()), parameters
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(TURNS + 1):
        for name, (optimizer, _) in optimizers.items():
            optimizer.step()  # what ran before has left its own data in the caches
            started = time.perf_counter()
            for _ in range(STEPS_A_TURN):
                optimizer.step()
            if turn:
                seconds[name].append((time.perf_counter() - started) / STEPS_A_TURN)
    return seconds


def optimizer_ratios() -> dict[str, float]:
    """How many times as long as a step of fused AdamW one of ours takes: the median of turn against turn."""
    seconds = steps_in_turns(("adamw", "lamb"))
    return {"lamb": float(np.median(np.divide(seconds["lamb"], seconds["adamw"])))}
