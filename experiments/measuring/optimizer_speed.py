"""How fast our own optimisers are, compared with torch's."""

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
    """Measures the seconds of a step of each optimiser on 4 million parameters and one thread, turn by turn.

    Args:
        names: names in the registry of optimisers; they take turns, each on parameters of its own.
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
    """Measures how many times as long a step of our optimisers takes as one of fused AdamW: a median over turns."""
    seconds = steps_in_turns(("adamw", "lamb"))
    return {"lamb": float(np.median(np.divide(seconds["lamb"], seconds["adamw"])))}
