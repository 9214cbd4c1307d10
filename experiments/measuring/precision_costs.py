"""What a precision costs: seconds and memory for a micro-batch, in several precisions side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bigbatch.experiments.training.assemble import Assembly
from bigbatch.tasks.task import Task
from bigbatch.training.precision import Precision

TURNS = 5

COPIES = 4
"""Numbers that training with Adam keeps for each weight: itself, its gradient, and two averages."""


@dataclass(frozen=True)
class Cost:
    """The cost of computing a micro-batch in one precision.

    Attributes:
        seconds: of forward and backward, a median over turns.
        bytes: of all weights with their gradients and Adam's averages, and of what forward keeps for backward.
    """

    seconds: float
    bytes: int


def costs(assemblies: Sequence[Assembly], examples: int, turns: int = TURNS) -> list[Cost]:
    """Measures the cost of the same micro-batch with one thread, in the precision of each assembly.

    They take turns, so that other load on the machine meets all of them.

    Args:
        assemblies: make the task, the same for all, and the models.
        examples: number of examples in the micro-batch.
        turns: number of times that each is measured, after one for warming up.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = assemblies[0].task
        batch = task.batch("training", np.arange(examples))
        models = [assembly.model() for assembly in assemblies]
        precisions = [assembly.precision for assembly in assemblies]
        seconds = [
            [_seconds(model, task, batch, precision) for model, precision in zip(models, precisions, strict=True)]
            for _ in range(turns + 1)
        ]
        medians = np.median(seconds[1:], axis=0).tolist()
        memory = [_bytes(model, task, batch, precision) for model, precision in zip(models, precisions, strict=True)]
        return [Cost(*both) for both in zip(medians, memory, strict=True)]
    finally:
        torch.set_num_threads(threads)


def _loss(model: nn.Module, task: Task, batch: Any, precision: Precision) -> Tensor:
    with precision.autocast(torch.device("cpu")):
        return task.loss(model, batch)[0]


def _seconds(model: nn.Module, task: Task, batch: Any, precision: Precision) -> float:
    started = time.perf_counter()
    _loss(model, task, batch, precision).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return time.perf_counter() - started


def _bytes(model: nn.Module, task: Task, batch: Any, precision: Precision) -> int:
    """Bytes of the weights with all that is kept for them, and of what forward keeps besides, each piece once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(model, task, batch, precision)  # held, so that no memory is used a second time
    del loss
    return COPIES * sum(parameter.nbytes for parameter in model.parameters()) + sum(kept.values())
