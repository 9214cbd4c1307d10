"""What torch's DistributedDataParallel makes of unusual modules, and what we do: torchrun beside_ddp.py prints JSON.

For each case, the greatest distance between the two trained modules, or the sentences with which one refuses it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from bodies import strategy_named
from gradient_hooks import Blocks, not_reentrant, reentrant
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from whole_module import FEATURES, MICRO_BATCHES, UPDATES, Branching, Job, Plain, adamw, batches, momentum

from bigbatch.comm.transports.launch import detect


@dataclass
class Case:
    """A module, and how it is trained.

    Attributes:
        make: makes a worker's module.
        optimizer: makes its optimiser.
        between: called with the module and the number of updates made, before the first and after each.
        options: of DistributedDataParallel.
    """

    make: Callable[[Job], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer] = adamw
    between: Callable[[nn.Module, int], object] = lambda *_: None
    options: dict[str, Any] = field(default_factory=dict)


def frozen_and_buffers(job: Job) -> nn.Module:
    module = Plain()
    module.second.weight.requires_grad_(False)
    module.second.weight.data += job.transport.rank
    module.register_buffer("shift", torch.full((3,), float(job.transport.rank)))
    return module


class Normed(Plain):
    def __init__(self, *, evaluated: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES).double()
        self.norm.running_mean.fill_(0.3)
        if evaluated:
            self.norm.eval()

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        return super().forward(self.norm(x))


class Embedded(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(5, FEATURES, sparse=True).double()

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        return super().forward(x + self.rows(torch.tensor(number % 5)))


class Scaled(Plain):
    """With one more parameter, which is a factor, or added where it has no elements."""

    def __init__(self, parameter: Tensor) -> None:
        super().__init__()
        self.more = nn.Parameter(parameter)

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        factor = self.more.abs().double().sum() if self.more.is_complex() else self.more.double().sum()
        return super().forward(x) * (1 + factor)


class Shared(Plain):
    """One weight before and after a layer."""

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        return super().forward(torch.tanh(self.first(x)) @ self.first.weight)


class Turned(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Parameter(torch.arange(12, dtype=torch.float64).reshape(3, 4).t() / 10)

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        return super().forward(x) + (x @ self.across.t()).sum() * 0.1


def hooked(_: Job) -> nn.Module:
    module = Plain()
    module.first.weight.register_hook(lambda gradient: gradient / 2)
    return module


def frozen_for_a_while(module: nn.Module, updates: int) -> None:
    module.first.requires_grad_(updates not in (1, 2))


def replaced(module: nn.Module, _: int) -> None:
    if module.first.weight.grad is not None:
        module.first.weight.grad = module.first.weight.grad.clone()


UNUSED = {"find_unused_parameters": True}
CASES: dict[str, Case] = {
    "frozen and buffers": Case(frozen_and_buffers),
    "running means": Case(lambda _: Normed()),
    "evaluation mode": Case(lambda _: Normed(evaluated=True)),
    "no gradient": Case(lambda _: Branching(lambda _: False), options=UNUSED),
    "a gradient on some workers": Case(
        lambda job: Branching(lambda number: number % job.workers == 1), momentum, options=UNUSED
    ),
    "frozen for a while": Case(lambda _: Plain(), momentum, frozen_for_a_while, UNUSED),
    "used twice": Case(lambda job: Blocks(job, lambda _: [0, 1, 0])),
    "used twice, checkpoint": Case(lambda job: Blocks(job, lambda _: [0, 1, 0], not_reentrant)),
    "used twice, reentrant": Case(lambda job: Blocks(job, lambda _: [0, 1, 0], reentrant)),
    "a replaced gradient": Case(lambda _: Plain(), between=replaced),
    "sparse gradients": Case(lambda _: Embedded(), momentum),
    "a hook": Case(hooked),
    "shared by several layers": Case(lambda _: Shared()),
    "of size zero": Case(lambda _: Scaled(torch.empty(0, 3, dtype=torch.float64))),
    "of no dimension": Case(lambda _: Scaled(torch.tensor(0.5, dtype=torch.float64))),
    "not contiguous": Case(lambda _: Turned()),
    **{
        str(dtype).removeprefix("torch."): Case(lambda _, dtype=dtype: Plain().to(dtype), momentum)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    },
    "complex numbers": Case(lambda _: Scaled(torch.tensor([0.5 + 1j], dtype=torch.complex128)), momentum),
    "several dtypes": Case(lambda _: Scaled(torch.tensor(0.5)), momentum),
    "two devices": Case(lambda _: Scaled(torch.tensor(0.5, device="meta", dtype=torch.float64)), momentum),
    "without a shape": Case(lambda _: nn.Sequential(nn.LazyLinear(2))),
    "nothing to train": Case(lambda _: Plain().requires_grad_(False)),
}


class Together(nn.Module):
    """The summed loss of all micro-batches of an update, in one forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *own: tuple[Tensor, int]) -> Tensor:
        return sum(self.module(*batch).sum() for batch in own)


def by_ddp(job: Job, case: Case) -> nn.Module:
    """Trains by torch's own DistributedDataParallel, whose gradients are means over workers."""
    module = case.make(job)
    wrapped = DistributedDataParallel(Together(module), **case.options)
    optimizer = case.optimizer(list(module.named_parameters()))
    data, every = batches(job.workers), job.workers * MICRO_BATCHES
    case.between(module, 0)
    for update in range(UPDATES):
        batch = data[update * every : (update + 1) * every]
        optimizer.zero_grad()
        wrapped(*batch[job.transport.rank :: job.workers]).backward()
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to_dense() * (job.workers / sum(len(x) for x, _ in batch))
        optimizer.step()
        case.between(module, update + 1)
    return module


def attempted(train: Callable[[], nn.Module]) -> nn.Module | str:
    try:
        return train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def state(module: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).to(torch.complex128) for tensor in module.state_dict().values()])


def found(job: Job, case: Case) -> dict[str, Any]:
    module = attempted(lambda: case.make(job))
    ours = attempted(partial(job.train, module, case.optimizer, between=case.between))
    ddp = attempted(lambda: by_ddp(job, case))
    refused = {name: one for name, one in (("ours", ours), ("ddp", ddp)) if isinstance(one, str)}
    if refused:
        return refused
    return {
        "distance": float((state(ours) - state(ddp)).abs().max()),
        "moved": not torch.equal(state(ours), state(case.make(job))),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    strategy = strategy_named("allreduce")
    transport = strategy.connect(detect(), "cpu", deadline=60)
    job = Job(strategy, transport)
    everything = {name: found(job, case) for name, case in CASES.items()}
    if transport.rank == 0:
        print(json.dumps(everything))
    transport.barrier()
    transport.close()
