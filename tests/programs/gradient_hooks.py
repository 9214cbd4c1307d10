"""What may come between "the hook of a gradient has fired" and "the gradient is whole": against a plain loop of torch.

python gradient_hooks.py STRATEGY[,STRATEGY...] runs every case on the wires of whoever started it. Every parameter has
a bucket of its own, and in every second update backward takes 30 ms longer in each block on every rank but the first,
so that a gradient that is sent too early is sent for sure (as in pytorch 81296).
"""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bodies import strategy_named
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from whole_module import FEATURES, MICRO_BATCHES, UPDATES, Batch, Job, Plain, adamw, batches

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.transports.launch import detect
from bigbatch.models.blocks import TransformerShape
from bigbatch.models.decoder import Transformer
from bigbatch.training.session import Session


class Sleep(torch.autograd.Function):
    """Does nothing, and takes some seconds for it in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return gradients[0], None


class Blocks(Plain):
    """A first layer, several passes through blocks, and a last layer.

    Args:
        job: the job, which says how long backward takes longer in each block.
        passes: for the number of a micro-batch, the number of the block in each pass.
        how: how a block is called with its input.
    """

    def __init__(
        self,
        job: Job,
        passes: Callable[[int], list[int]] = lambda _: [0, 1],
        how: Callable[..., Tensor] = lambda block, h: block(h),
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)).double()
        self.job, self.passes, self.how = job, passes, how

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        round_ = number // self.job.workers
        sent = round_ % MICRO_BATCHES == MICRO_BATCHES - 1 and round_ // MICRO_BATCHES % 2 == 1
        seconds = self.job.slow * self.job.transport.rank if sent else 0.0

        def block(h: Tensor, place: int) -> Tensor:
            return torch.tanh(self.blocks[place](Sleep.apply(h, seconds)))

        h = torch.tanh(self.first(x))
        for place in self.passes(number):
            h = self.how(partial(block, place=place), h)
        return self.second(h).pow(2)


def reentrant(block: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=True)


def not_reentrant(block: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=False)


def compare(job: Job, make: Callable[[Job], nn.Module], **more: Any) -> None:
    """Trains what `make` makes, here and in a plain loop, in which nothing is slow."""
    job.same(job.train(make(job), **more), job.plain(make(replace(job, slow=0.0)), **more))


def update_of(number: int, workers: int) -> int:
    return number // (workers * MICRO_BATCHES)


def a_layer_that_is_used_twice(job: Job) -> None:
    for how in (reentrant, not_reentrant, lambda block, h: block(h)):
        compare(job, lambda job, how=how: Blocks(job, lambda _: [0, 1, 0], how))


class TiedWeights(Blocks):
    """Two blocks, and the layers before and after them, that share weights."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, how=reentrant)
        self.blocks[1].weight = self.blocks[0].weight
        self.back = nn.Linear(4, FEATURES, bias=False).double()
        self.back.weight = nn.Parameter(self.first.weight.detach().t().clone())

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        h = super().forward(x, number)
        return h + nn.functional.linear(h.expand(-1, 4), self.first.weight.t()).pow(2).sum(1, keepdim=True)


def tied_weights(job: Job) -> None:
    compare(job, TiedWeights)


def blocks_that_a_batch_on_one_rank_does_not_use(job: Job) -> None:
    """Worker 1 skips a block: always, at first, or later."""
    for skipped in (range(UPDATES), range(1), range(1, 3)):

        def passes(number: int, skipped: range = skipped) -> list[int]:
            skips = number % job.workers == 1 and update_of(number, job.workers) in skipped
            return [1] if skips else [0, 1]

        compare(job, lambda job, passes=passes: Blocks(job, passes, reentrant))


def blocks_in_another_order_on_every_rank(job: Job) -> None:
    """Backward finishes the buckets in another order on each rank; all ranks must send them in one."""
    compare(job, lambda job: Blocks(job, lambda number: [0, 1] if number % job.workers else [1, 0]))


def frozen_for_a_while_on_one_rank_only(job: Job) -> None:
    for frozen in (range(1), range(1, 3), range(3, 4)):

        def loss(module: nn.Module, batch: Batch, frozen: range = frozen) -> Tensor:
            number = batch[1]
            stays = number % job.workers == 1 and update_of(number, job.workers) in frozen
            module.blocks[1].requires_grad_(not stays)
            return module(*batch).sum()

        compare(job, Blocks, loss=loss)


def fewer_goes_than_before(job: Job) -> None:
    """Three goes in the first update and one later, everywhere or on worker 1 only."""
    for everywhere in (True, False):

        def passes(number: int, everywhere: bool = everywhere) -> list[int]:
            fewer = update_of(number, job.workers) > 0 and (everywhere or number % job.workers == 1)
            return [1] if fewer else [0, 0, 1, 0]

        compare(job, lambda job, passes=passes: Blocks(job, passes, reentrant))


def more_goes_in_another_micro_batch(job: Job) -> None:
    """Gradients are sent in an update's last micro-batch: how often the others add to them is all one."""

    def passes(number: int) -> list[int]:
        last = number // job.workers % MICRO_BATCHES == MICRO_BATCHES - 1
        return [0, 1] if last else [0, 1, 0, 0]

    compare(job, lambda job: Blocks(job, passes, reentrant))


def a_gradient_penalty(job: Job) -> None:
    """A backward through a backward (Gulrajani et al. 2017) uses every weight once more."""

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        y = module(x, batch[1]).sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        return y + slope.pow(2).sum()

    compare(job, lambda _: Plain(), loss=loss)


def a_rank_that_has_no_data_in_the_first_update(job: Job) -> None:
    """A first pass has a single micro-batch, worker 0's: the others cannot learn from it how many goes there are."""

    def module(job: Job) -> nn.Module:
        return Blocks(job, lambda _: [0, 1, 0], reentrant)

    data = batches(job.workers)
    trained, expected = module(job), module(replace(job, slow=0.0))
    parameters = FlatParameters(trained)
    strategy = job.strategy(job.transport)
    strategy.start(parameters, adamw, bucket_bytes=1)
    session = Session(strategy, parameters, overlap=True, broadcast_buffers=True, close=lambda: None)
    strategy.enter()
    for share in (data[:1], data[1:]):
        for step, (x, number) in enumerate(session.shard(share)):
            session.backward(trained(x, number).sum(), len(x), last=(step + 1) % MICRO_BATCHES == 0)
    session.close()
    optimizer = adamw(list(expected.named_parameters()))
    every = job.workers * MICRO_BATCHES
    for group in (data[:1], *(data[start : start + every] for start in range(1, len(data), every))):
        optimizer.zero_grad()
        for x, number in group:
            expected(x, number).sum().backward()
        for parameter in expected.parameters():
            parameter.grad /= sum(len(x) for x, _ in group)
        optimizer.step()
    job.same(trained, expected)


def a_backward_of_its_own(job: Job) -> None:
    """The loop's own backward through the model, as that of a GAN's generator; with zero_grad, or to count."""

    def loss(module: nn.Module, batch: Batch, *, removed: bool) -> Tensor:
        if batch[1] // job.workers % MICRO_BATCHES == 0:
            module(*batch).exp().sum().backward()
            if removed:
                module.zero_grad()
        return module(*batch).sum()

    job.same(job.train(Plain(), loss=partial(loss, removed=True)), job.plain(Plain()))
    job.same(*(train(Plain(), loss=partial(loss, removed=False)) for train in (job.train, job.plain)))


class Own(nn.Module):
    """Our own decoder, on tokens that are made of what the others take."""

    def __init__(self, job: Job, *, recompute: bool) -> None:
        super().__init__()
        self.job = job
        self.decoder = Transformer(TransformerShape(11, 4, 2, 8, 2, recompute=recompute), seed=1).double()

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        logits = self.decoder((10 * x.sigmoid()).long())
        return Sleep.apply(logits, self.job.slow * self.job.transport.rank).logsumexp(-1)


def our_own_blocks_that_are_computed_again(job: Job) -> None:
    job.same(job.train(Own(job, recompute=True)), job.plain(Own(replace(job, slow=0.0), recompute=False)))


CASES: list[Callable[[Job], None]] = [
    a_layer_that_is_used_twice,
    tied_weights,
    blocks_that_a_batch_on_one_rank_does_not_use,
    blocks_in_another_order_on_every_rank,
    frozen_for_a_while_on_one_rank_only,
    fewer_goes_than_before,
    more_goes_in_another_micro_batch,
    a_gradient_penalty,
    a_rank_that_has_no_data_in_the_first_update,
    a_backward_of_its_own,
    our_own_blocks_that_are_computed_again,
]


def more_goes(job: Job, *, everywhere: bool) -> dict[str, Any]:
    """One go in the first update and three from the third on, under reentrant checkpointing."""

    def passes(number: int) -> list[int]:
        more = update_of(number, job.workers) > 1 and (everywhere or number % job.workers == 1)
        return [0, 1, 0, 0] if more else [0, 1]

    return {"module": Blocks(job, passes, reentrant)}


def a_backward_that_raises(job: Job, update: int) -> dict[str, Any]:
    """Worker 1's backward raises half-way in one update; its loop catches the error and goes on."""

    class Raising(Blocks):
        raises = False

        def forward(self, x: Tensor, number: int = 0) -> Tensor:
            self.raises = number % job.workers == 1 and update_of(number, job.workers) == update
            return super().forward(x, number)

    module = Raising(job)

    def hook(_: Tensor) -> None:
        if module.raises:
            raise MemoryError

    module.blocks[0].weight.register_hook(hook)
    return {"module": module, "catches": MemoryError}


REFUSED: dict[str, tuple[str, Callable[[Job], dict[str, Any]]]] = {
    "more goes later": ("The gradient of blocks.0.", lambda job: more_goes(job, everywhere=True)),
    "more goes later, on one rank": ("The gradient of blocks.0.", lambda job: more_goes(job, everywhere=False)),
    "a backward that raises": ("Backward was ended by an error", lambda job: a_backward_that_raises(job, 1)),
    "the last backward raises": (
        "Backward was ended by an error",
        lambda job: a_backward_that_raises(job, UPDATES - 1),
    ),
}
"""What is refused: the words that the error has on every rank, and what makes it."""


def refused(job: Job, case: str) -> None:
    """Every rank raises the error, in the words of the rank that has found the fault."""
    words, make = REFUSED[case]
    job.refused(words, **make(job))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1].split(","):
        strategy = strategy_named(name)
        transport = strategy.connect(detect(), "cpu", deadline=60)
        job = Job(strategy, transport, slow=0.03)
        try:
            for case in CASES:
                case(job)
            if issubclass(strategy, AllReduce):  # a worker of servers is refused alone, which ends the job
                for words in REFUSED:
                    refused(job, words)
        except BaseException:
            traceback.print_exc()
            transport.abort(1)
        transport.barrier()
        last = transport.rank == 0
        transport.close()
    if last:
        print("all is well")
