"""What the whole of a module, and whatever torch may do to its gradients, comes to: against a plain loop of torch.

python whole_module.py STRATEGY[,STRATEGY...] runs every case on the wires of whoever started it. A case is a function
of what `Job` offers; it raises an AssertionError if something else is trained than a plain loop trains.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from bodies import strategy_named
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.launch import detect
from bigbatch.comm.wires.transport import Transport
from bigbatch.training.session import Session

FEATURES, MICRO_BATCHES, UPDATES = 3, 2, 4
Batch = tuple[Tensor, int]
"""(examples, FEATURES) inputs, and the number of the micro-batch, from 0, over all workers and updates."""


def batches(workers: int) -> list[Batch]:
    """As many micro-batches as all workers need, of different sizes and numbers."""
    generator = torch.Generator().manual_seed(4)
    count = workers * MICRO_BATCHES * UPDATES
    return [
        (torch.randn(2 + number % 3, FEATURES, generator=generator, dtype=torch.float64), number)
        for number in range(count)
    ]


class Plain(nn.Module):
    """Two layers and a scale, which cases change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(FEATURES, 4)
        self.second = nn.Linear(4, 1)
        self.double()

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        return self.second(torch.tanh(self.first(x.to(self.first.weight.dtype)))).pow(2)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


Make = Callable[..., torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@dataclass
class Job:
    """The ranks of a job, and a strategy that trains over them."""

    strategy: type[Strategy]
    transport: Transport
    slow: float = 0.0
    """Seconds that a block takes longer on each rank than on the one before."""

    @property
    def workers(self) -> int:
        return self.strategy.workers_among(self.transport.size)

    def train(
        self,
        module: nn.Module,
        make: Make = adamw,
        *,
        loss: Callable[[nn.Module, Batch], Tensor] = lambda module, batch: module(*batch).sum(),
        between: Callable[[nn.Module, int], object] = lambda *_: None,
        bucket_bytes: int = 1,
        catches: type[BaseException] | tuple[()] = (),
        **more: Any,
    ) -> nn.Module:
        """Train by a session with as many buckets as there are parameters; a server's module is left as it is.

        Args:
            module: this rank's.
            make: makes the optimiser.
            loss: the summed loss of a micro-batch.
            between: called with the module and the number of updates made, before the first and after each.
            bucket_bytes: of each bucket, at least.
            catches: what the loop goes on after, if backward raises it.
            more: the session's own options.
        """
        parameters = FlatParameters(module)
        strategy = self.strategy(self.transport)
        strategy.start(parameters, make, bucket_bytes=bucket_bytes)
        session = Session(
            strategy, parameters, **{"overlap": True, "broadcast_buffers": True, "close": lambda: None, **more}
        )
        strategy.enter()
        if session.worker is not None:
            between(module, 0)
        for step, batch in enumerate(session.shard(batches(self.workers))):
            last = (step + 1) % MICRO_BATCHES == 0
            with suppress(catches):
                session.backward(loss(module, batch), len(batch[0]), last=last)
            if last:
                between(module, (step + 1) // MICRO_BATCHES)
        session.close()
        return module

    def plain(
        self,
        module: nn.Module,
        make: Make = adamw,
        *,
        loss: Callable[[nn.Module, Batch], Tensor] = lambda module, batch: module(*batch).sum(),
        between: Callable[[nn.Module, int], object] = lambda *_: None,
    ) -> nn.Module:
        """The oracle: one process that sees every worker's micro-batches, and torch's optimiser on their mean."""
        optimizer = make(list(module.named_parameters()))
        every, data = self.workers * MICRO_BATCHES, batches(self.workers)
        between(module, 0)
        for update in range(UPDATES):
            for parameter in module.parameters():
                parameter.grad = None
            count = 0
            for batch in data[update * every : (update + 1) * every]:
                loss(module, batch).backward()
                count += len(batch[0])
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.to_dense() / count
            optimizer.step()
            between(module, update + 1)
        return module

    @property
    def trains(self) -> bool:
        return self.transport.rank < self.workers

    def same(self, trained: nn.Module, expected: nn.Module) -> None:
        if self.trains:
            torch.testing.assert_close(flat(trained), flat(expected), rtol=1e-11, atol=1e-13)

    def refused(self, words: str, **more: Any) -> None:
        """Every rank that an error reaches says these words; a server, and whoever waits for it, is ended by it."""
        try:
            self.train(**more)
        except ConfigurationError as error:
            if words in str(error):
                return
            raise
        raise AssertionError(f"nobody said {words!r}")


def a_block_used_three_times_under_reentrant_checkpointing(job: Job) -> None:
    class Thrice(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4).double()
            self.other = nn.Linear(4, 4).double()

        def slow(self, h: Tensor) -> Tensor:
            time.sleep(job.slow * job.transport.rank)
            return torch.tanh(self.block(h) + self.other(h))

        def forward(self, x: Tensor, _: int = 0) -> Tensor:
            h = torch.tanh(self.first(x))
            for _ in range(3):
                h = checkpoint(self.slow, h, use_reentrant=True)
            return self.second(h).pow(2)

    job.same(job.train(Thrice()), job.plain(Thrice()))


def a_loss_that_removes_gradients(job: Job) -> None:
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        module.zero_grad()
        return module(*batch).sum()

    job.same(job.train(Plain(), loss=loss), job.plain(Plain()))


def an_optimiser_that_removes_gradients(job: Job) -> None:
    for to_none in (True, False):

        class Zeroing(torch.optim.SGD):
            removes = to_none

            def step(self, closure: Any = None) -> Any:
                super().step(closure)
                self.zero_grad(set_to_none=self.removes)

        def zeroing(parameters: Any) -> torch.optim.Optimizer:
            return Zeroing(parameters, lr=0.1, momentum=0.9)

        job.same(job.train(Plain(), zeroing), job.plain(Plain(), zeroing))


class Replacing(torch.optim.Optimizer):
    """Puts new values elsewhere, as many a first optimiser does; servers and saved states have the flat buffer's."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, _: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data = (parameter.data - 0.1 * parameter.grad).t().clone().t()


def an_optimiser_that_replaces_values(job: Job) -> None:
    job.same(job.train(Plain(), Replacing), job.plain(Plain(), Replacing))


def a_gradient_that_was_replaced(job: Job) -> None:
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        weight = module.first.weight
        if weight.grad is not None:
            weight.grad = weight.grad.clone()
        return module(*batch).sum()

    job.same(job.train(Plain(), loss=loss), job.plain(Plain()))


def sparse_gradients(job: Job) -> None:
    class Embedded(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(5, FEATURES, sparse=True).double()

        def forward(self, x: Tensor, number: int = 0) -> Tensor:
            return super().forward(x + self.rows(torch.tensor(number % 5)))

    job.same(job.train(Embedded()), job.plain(Embedded()))


class Branching(Plain):
    """A branch that some micro-batches take, and one that none takes."""

    def __init__(self, takes: Callable[[int], bool]) -> None:
        super().__init__()
        self.branch = nn.Linear(FEATURES, 1).double()
        self.unused = nn.Linear(2, 2).double()
        self._takes = takes

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        y = super().forward(x)
        return y + self.branch(x).pow(2) if self._takes(number) else y


def parameters_without_a_gradient(job: Job) -> None:
    for takes in (lambda _: False, lambda number: number % job.workers == 1, lambda number: number >= 9):
        for make in (adamw, momentum):
            job.same(job.train(Branching(takes), make), job.plain(Branching(takes), make))


def layers_frozen_for_a_while(job: Job) -> None:
    def between(module: nn.Module, updates: int) -> None:
        module.first.requires_grad_(updates not in (1, 2))

    for make in (adamw, momentum):
        job.same(job.train(Plain(), make, between=between), job.plain(Plain(), make, between=between))


def frozen_parameters_and_buffers_are_rank_0s(job: Job) -> None:
    def module(rank: int) -> nn.Module:
        made = Plain()
        made.first.weight.requires_grad_(False)
        made.first.weight.data += rank
        made.register_buffer("shift", torch.full((2, 2), float(rank)))
        made.register_buffer("count", torch.tensor(5 * rank))
        made.register_buffer("mask", torch.tensor([rank > 0, True]))
        made.register_buffer("none", torch.empty(0))
        made.register_buffer("eighth", torch.full((3,), 1.0 + rank).to(torch.float8_e5m2))
        made.register_buffer("turned", torch.full((2, 3), 1j * rank).t().conj())
        return made

    trained = job.train(module(job.transport.rank))
    job.same(trained, job.plain(module(0)))
    assert torch.equal(trained.shift, torch.zeros(2, 2))
    assert (int(trained.count), trained.mask.tolist()) == (0, [False, True])
    assert (trained.eighth.float().tolist(), trained.turned.abs().sum()) == ([1.0] * 3, 0)


def norms_have_worker_0s_means(job: Job) -> None:
    class Normed(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(FEATURES).double()

        def forward(self, x: Tensor, _: int = 0) -> Tensor:
            return super().forward(self.norm(x))

    def means(worker: int) -> Tensor:
        norm = nn.BatchNorm1d(FEATURES).double()
        for x, number in batches(job.workers):
            if number % job.workers == worker:
                norm(x)
        return torch.cat([norm.running_mean, norm.running_var, norm.num_batches_tracked[None]])

    for broadcast in (True, False):
        trained = job.train(Normed(), broadcast_buffers=broadcast)
        if job.trains:
            norm = trained.norm
            found = torch.cat([norm.running_mean, norm.running_var, norm.num_batches_tracked[None]])
            torch.testing.assert_close(found, means(0 if broadcast else job.transport.rank), rtol=1e-12, atol=0)


def other_dtypes_and_shapes(job: Job) -> None:
    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.empty(0, 3, dtype=torch.float64))
            self.across = nn.Parameter(torch.arange(12, dtype=torch.float64).reshape(3, 4).t() / 10)
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x: Tensor, _: int = 0) -> Tensor:
            return self.scale * super().forward(x) + (x @ self.across.t()).sum() * 0.1

    job.same(job.train(Odd()), job.plain(Odd()))


def half_precision(job: Job) -> None:
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        trained, expected = (train(Plain().to(dtype), momentum) for train in (job.train, job.plain))
        if job.trains:
            torch.testing.assert_close(flat(trained), flat(expected), rtol=tolerance, atol=tolerance)
            assert not torch.equal(flat(trained), flat(Plain().to(dtype)))


def values_that_were_moved(job: Job) -> None:
    def between(module: nn.Module, _: int) -> None:
        module.first.weight.data = module.first.weight.data.clone()

    job.same(job.train(Plain(), between=between), job.plain(Plain()))


def clamped(module: nn.Module, _: int) -> None:
    for parameter in module.parameters():
        parameter.data.clamp_(-0.2, 0.2)


def parameters_that_every_worker_changes_alike(job: Job) -> None:
    """As in a Wasserstein GAN's critic. Servers would undo it, so that they refuse it."""
    if issubclass(job.strategy, AllReduce):
        job.same(job.train(Plain(), between=clamped), job.plain(Plain(), between=clamped))


class Taught(Plain):
    """A frozen teacher, the moving mean of what is trained (mean teacher), alike on workers in step."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(FEATURES, 4).double().requires_grad_(False)

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        return super().forward(x) + (self.teacher(x) - self.first(x)).pow(2).sum()


def learnt(module: nn.Module, _: int) -> None:
    module.teacher.weight.data.lerp_(module.first.weight.data, 0.1)


def a_frozen_parameter_that_all_workers_move_alike(job: Job) -> None:
    job.same(job.train(Taught(), between=learnt), job.plain(Taught(), between=learnt))


CASES: list[Callable[[Job], None]] = [
    a_block_used_three_times_under_reentrant_checkpointing,
    a_loss_that_removes_gradients,
    an_optimiser_that_removes_gradients,
    an_optimiser_that_replaces_values,
    a_gradient_that_was_replaced,
    sparse_gradients,
    parameters_without_a_gradient,
    layers_frozen_for_a_while,
    frozen_parameters_and_buffers_are_rank_0s,
    norms_have_worker_0s_means,
    other_dtypes_and_shapes,
    half_precision,
    values_that_were_moved,
    parameters_that_every_worker_changes_alike,
    a_frozen_parameter_that_all_workers_move_alike,
]


def erased(module: nn.Module, batch: Batch) -> Tensor:
    module.zero_grad(set_to_none=False)
    return module(*batch).sum()


def replaced(module: nn.Module, updates: int) -> None:
    if updates == 1:
        module.second.weight = nn.Parameter(module.second.weight.detach().clone())


def grown(module: nn.Module, updates: int) -> None:
    if updates == 1:
        module.late = nn.Linear(1, 1)


def converted(module: nn.Module, updates: int) -> None:
    if updates == 2:
        module.float()


def thawed(module: nn.Module, updates: int) -> None:
    module.first.weight.requires_grad_(updates > 0)


class Renormed(Plain):
    """Rows that each worker scales down when it looks them up (pytorch 28959), and so only those of its own data."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(5, FEATURES, max_norm=0.5).double()

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        return super().forward(x + self.rows(torch.tensor(number % 5)))


class Quantised(Plain):
    """A frozen codebook that each worker moves towards its own data (vector-quantize-pytorch 222)."""

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.zeros(FEATURES, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        self.book.data.lerp_(x.mean(0), 0.1)
        return super().forward(x)


class Tied(Plain):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(FEATURES, 4).double()
        self.other.weight = self.first.weight


def new_layer(module: nn.Module, updates: int) -> None:
    if updates == 1:  # pytorch 12603
        module.second = nn.Linear(4, 1).double()


def untied(module: nn.Module, updates: int) -> None:
    if updates == 1:
        module.other.weight = nn.Parameter(module.first.weight.detach().clone())


def without_bias() -> nn.Module:
    module = Plain()
    module.second = nn.Linear(4, 1, bias=False).double()
    return module


def given_a_bias(module: nn.Module, updates: int) -> None:
    if updates == 1:
        module.second.bias = nn.Parameter(torch.ones(1, dtype=torch.float64))


def hooked(module: nn.Module, updates: int) -> None:
    if updates == 0:  # after the session's own, which have sent the gradient by then
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad / 2))


class LateLayers(Plain):
    """A block that is used once in the first update, and three times later, under reentrant checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4).double()
        self.seen = 0

    def forward(self, x: Tensor, _: int = 0) -> Tensor:
        self.seen += 1
        h = torch.tanh(self.first(x))
        for _ in range(1 if self.seen <= MICRO_BATCHES else 3):
            h = checkpoint(lambda h: torch.tanh(self.block(h)), h, use_reentrant=True)
        return self.second(h).pow(2)


def frozen_first() -> nn.Module:
    module = Plain()
    module.first.weight.requires_grad_(False)
    return module


def with_buffer(tensor: Tensor) -> nn.Module:
    module = Plain()
    module.register_buffer("odd", tensor)
    return module


def with_more(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([*[p for _, p in parameters], nn.Parameter(torch.ones(2, 7))], lr=0.1)


def growing(module: nn.Module, updates: int) -> None:
    module.odd = torch.zeros(2 + updates)


def with_buffer_of_a_weight() -> nn.Module:
    module = Plain()
    module.register_buffer("odd", module.first.weight.data[1:])
    return module


def tied_by_data() -> nn.Module:
    module = Plain()  # huggingface/accelerate 3154 ties weights anew; by `.data` they are one in torch, too
    module.other = nn.Linear(FEATURES, 4).double()
    module.other.weight.data = module.first.weight.data
    return module


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        return Plain()


class Careless(torch.optim.SGD):
    """Does not ask whether a parameter has a gradient."""

    def step(self, _: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data -= 0.1 * parameter.grad.data


def put_into_shared_memory(module: nn.Module, updates: int) -> None:
    if updates == 1:
        module.share_memory()


def cut(module: nn.Module, updates: int) -> None:
    if updates == 1:
        module.first.weight.data = module.first.weight.data[:, :2]


def of_two_features(module: nn.Module, batch: Batch) -> Tensor:
    return module(batch[0][:, : module.first.weight.shape[1]]).sum()


REFUSED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "erased gradients": ("was set to zero after backward", lambda: {"module": Plain(), "loss": erased}),
    "a parameter that was replaced": ("second.weight was replaced", lambda: {"module": Plain(), "between": replaced}),
    "a layer that was replaced": ("parts (second)", lambda: {"module": Plain(), "between": new_layer}),
    "a shared weight": ("other.weight was replaced", lambda: {"module": Tied(), "between": untied}),
    "a late bias": ("parts (second.bias)", lambda: {"module": without_bias(), "between": given_a_bias}),
    "a late hook": ("changed after it had been sent", lambda: {"module": Plain(), "between": hooked}),
    "weights that a layer changes": ("The parameter rows.weight", lambda: {"module": Renormed()}),
    "a codebook": ("The parameter book has come apart from worker 0's", lambda: {"module": Quantised()}),
    "a late layer": ("got other parameters or parts", lambda: {"module": Plain(), "between": grown}),
    "a late conversion": (
        "became float32 of shape [1] on cpu after training",
        lambda: {"module": Plain(), "between": converted},
    ),
    "a weight that is cut": (
        "first.weight became float64 of shape [4, 2] on cpu after training",
        lambda: {"module": Plain(), "between": cut, "loss": of_two_features},
    ),
    "a late thaw": ("first.weight was frozen when training", lambda: {"module": frozen_first(), "between": thawed}),
    "more goes than before": ("after it had been sent", lambda: {"module": LateLayers()}),
    "an optimiser of other parameters": (
        "holds 1 parameters that it was not given, the first of shape [2, 7]",
        lambda: {"module": Plain(), "make": with_more},
    ),
    "an optimiser that cannot make a step": (
        "The optimiser Careless cannot make its step: AttributeError: 'NoneType'",
        lambda: {"module": Branching(lambda _: False), "make": Careless},
    ),
    "weights tied by .data": ("first.weight and other.weight of the model", lambda: {"module": tied_by_data()}),
    "a buffer that is a weight": (
        "share memory",
        lambda: {"module": with_buffer_of_a_weight()},
    ),
    "a model that is moved": (
        "by share_memory() or by sending",
        lambda: {"module": Plain(), "between": put_into_shared_memory},
    ),
    "a model made for inference": ("under torch.inference_mode", lambda: {"module": made_for_inference()}),
    "no module": ("must be a torch.nn.Module, but is [Parameter", lambda: {"module": list(Plain().parameters())}),
    "a buffer that grows": (
        "The buffer odd was added, removed or got another shape",
        lambda: {"module": with_buffer(torch.zeros(2)), "between": growing},
    ),
    "an expanded buffer": (
        "odd of the model Plain is expanded",
        lambda: {"module": with_buffer(torch.ones(1).expand(3))},
    ),
    "a sparse buffer": ("is sparse or nested", lambda: {"module": with_buffer(torch.eye(2).to_sparse())}),
    "complex numbers": ("complex64, but only", lambda: {"module": nn.Linear(2, 2, dtype=torch.complex64)}),
    "mixed dtypes": (
        "one flat buffer holds one dtype",
        lambda: {"module": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1).double())},
    ),
    "a lazy layer": ("has no shape yet", lambda: {"module": nn.LazyLinear(2)}),
    "a lazy norm without weights": (
        "The buffer 1.running_mean of the model Sequential has no shape yet",
        lambda: {"module": nn.Sequential(nn.Linear(3, 2), nn.LazyBatchNorm1d(affine=False))},
    ),
    "nothing to train": ("no parameter that requires", lambda: {"module": nn.Linear(2, 2).requires_grad_(False)}),
    "only parameters of size zero": (
        "no parameter that requires",
        lambda: {"module": nn.ParameterList([torch.empty(0, 2)])},
    ),
}
"""What is refused: the words that the error has, and what makes it."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    names, *cases = sys.argv[1:]
    for name in names.split(","):
        strategy = strategy_named(name)
        transport = strategy.connect(detect(), "cpu", deadline=60)
        try:
            if cases:
                words, make = REFUSED[cases[0]]
                Job(strategy, transport).refused(words, **make())
            else:
                for case in CASES:
                    case(Job(strategy, transport, slow=0.03))
        except BaseException:
            import traceback

            traceback.print_exc()
            transport.abort(1)
        transport.barrier()
        last = transport.rank == 0
        transport.close()
    if last:
        print("all is well")
