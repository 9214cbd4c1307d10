"""How fast the translation task trains, compared with a plain loop of PyTorch over the same model and pairs."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.experiments.training.settings import Settings
from bigbatch.training.division import Batches
from bigbatch.training.order import DataOrder
from bigbatch.training.trainer import lengths_for

TURNS, UPDATES_A_TURN = 20, 5

ENDLESS = 10**6
"""More examples than are ever reached."""


def ours(assembly: Assembly) -> Iterator[int]:
    """Trains one worker, and yields the target tokens of each update without end."""
    plan, strategy = assembly.settings.plan(), STRATEGIES.load("ring")
    make = assembly.optimizer(plan, strategy)
    trainer = assembly.trainer(strategy(Alone()), make, plan, torch.device("cpu"), examples=ENDLESS)
    for update in trainer.updates():
        yield update.tokens


def plain(assembly: Assembly) -> Iterator[int]:
    """Trains the same model on the same micro-batches as anybody would write it, and yields each update's tokens."""
    plan, task, model = assembly.settings.plan(), assembly.task, assembly.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=assembly.settings.update.learning_rate, fused=True)
    order = DataOrder(task.sizes["training"], assembly.settings.batch.seed)
    batches = Batches(plan, order, ENDLESS, lengths_for(plan, task))
    for update in range(batches.updates):
        optimizer.zero_grad()
        total = 0
        for examples in batches.micro_batches(update, 0):
            loss, tokens = task.loss(model, task.batch("training", examples))
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            total += tokens
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= total
        optimizer.step()
        yield total


def loop_ratio() -> float:
    """Measures our target tokens a second, one worker's, in times of those of the plain loop: a median over turns."""
    torch.set_num_threads(1)
    settings = Settings.of({"task": "translation", "workers": 1, "micro_batch": 16, "accumulate": 4})
    assembly = Assembly(settings, task_of(settings.data))
    both = {"ours": ours(assembly), "plain": plain(assembly)}
    speeds: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(TURNS + 1):
        # Who comes first changes from turn to turn, so that neither always follows the other.
        for name in sorted(both, reverse=bool(turn % 2)):
            started, tokens = time.perf_counter(), 0
            for _ in range(UPDATES_A_TURN):
                tokens += next(both[name])
            if turn:
                speeds[name].append(tokens / (time.perf_counter() - started))
    return float(np.median(np.divide(speeds["ours"], speeds["plain"])))
