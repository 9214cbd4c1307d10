"""What every all-reduce and every strategy is put through in half precision: in one process, and on real wires."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.format import WireFormat
from bigbatch.comm.wires.transport import Transport

FORMATS = (WireFormat("bf16"), WireFormat("fp16"), WireFormat("fp16", 2.0**-6))
LENGTHS = (0, 1, 2, 1003)


def drawn(rank: int, elements: int) -> Tensor:
    """Normal numbers, others on every rank."""
    return torch.randn(elements, generator=torch.Generator().manual_seed(rank))


def counted(rank: int, elements: int) -> Tensor:
    """Integers from -3 to 3, others on every rank: sums of up to nine are exact in bf16 and in fp16."""
    return torch.randint(-3, 4, (elements,), generator=torch.Generator().manual_seed(100 + rank)).float()


def sums_in_half_precision(make: Callable[[Transport], Collective], transport: Transport) -> None:
    """Sums are exact where they can be, the same bytes everywhere, near the exact sum, and take half the bytes."""
    collective = make(transport)
    ranks = range(transport.size)
    for wire in FORMATS:
        collective.admit(wire)
        for dtype in (torch.float32, torch.float64):
            memory = collective.allocate(sum(LENGTHS), dtype, torch.device("cpu"))
            for whole_numbers in (True, False):
                values = counted if whole_numbers else drawn
                parts = torch.split(memory, LENGTHS)  # several buckets, under way at once
                for part in parts:
                    part.copy_(values(transport.rank, len(part)))
                under_way = [collective.start(part, wire) for part in parts]
                for reduction in under_way[::-1]:
                    reduction.wait()
                for part in parts:
                    exact = sum((values(rank, len(part)).double() for rank in ranks), torch.zeros(len(part)).double())
                    if whole_numbers:
                        assert torch.equal(part.double(), exact), (wire, dtype, len(part))
                    elif len(part) > 1000:
                        error = (part.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
                        assert error < (6e-3 if wire.precision == "bf16" else 8e-4), (wire, error)
                everyones = all_gather(transport, memory.numpy().tobytes().hex())
                assert set(everyones) == {everyones[0]}, (wire, dtype)
    memory = collective.allocate(10_000, torch.float32, torch.device("cpu"))
    sent = {}
    for wire in (WireFormat(), FORMATS[0]):
        collective.introduce(memory, wire)
        before = transport.bytes_sent
        collective.reduce(memory, wire)
        sent[wire.precision] = transport.bytes_sent - before
    assert abs(sent["fp32"] - 2 * sent["bf16"]) <= 16 * transport.size, sent
    collective.close()


UPDATES, TOKENS = 12, 10


def new_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(37, 11), nn.Tanh(), nn.Linear(11, 3))


def trained(
    strategy: Callable[[Transport], Strategy],
    transport: Transport,
    wire: str,
    bad: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, list[str], int] | None:
    """A short training: the newest parameters, what became of every update and the bytes that this worker sent.

    Args:
        strategy: makes the strategy.
        transport: this rank's.
        wire: the precision of the wires.
        bad: what worker 1 puts into its gradient in the sixth update.
        dtype: of the parameters.
    """
    model = new_model().to(dtype)
    parameters = FlatParameters(model)
    made = strategy(transport)
    made.start(
        parameters,
        lambda named: torch.optim.SGD([p for _, p in named], lr=0.05),
        bucket_bytes=200,
        wire=wire,
        expected_tokens=made.workers * TOKENS,
    )

    def work() -> tuple[Tensor, list[str], int]:
        outcomes, sent = [], transport.bytes_sent
        for update in range(UPDATES):
            parameters.views.begin()
            draw = torch.Generator().manual_seed(1000 * update + transport.rank)
            inputs, targets = torch.randn(TOKENS, 37, generator=draw), torch.randn(TOKENS, 3, generator=draw)
            with parameters.views.adding():
                loss = (model(inputs.to(dtype)) - targets).square().sum()
                loss.backward()
            if bad is not None and update == 5 and transport.rank == 1:
                parameters.gradients[7] = bad
            for bucket in made.buckets:
                parameters.complete(bucket)
                made.push(bucket)
            outcomes.append(str(made.step(TOKENS, float(loss.detach())).outcome))
            made.pull()
        sent = transport.bytes_sent - sent
        with made.newest(together=True):
            return parameters.values.clone(), outcomes, sent

    result = made.run(work)
    made.close()
    return result


def trains_in_half_precision(strategy: type[Strategy], transport: Transport) -> None:
    """Ends near float32's parameters and skips on all workers what overflows on one; fewer bytes are sent."""
    results = {wire: trained(strategy, transport, wire) for wire in ("fp32", "bf16", "fp16")}
    skipping = trained(strategy, transport, "fp16", bad=1e9)
    whole = results["fp32"]
    if whole is None or skipping is None:
        return
    for wire, near in (("bf16", 4e-3), ("fp16", 1e-3)):
        values, outcomes, sent = results[wire] or whole
        moved = (values - whole[0]).norm() / (whole[0] - flat(new_model())).norm()
        assert 0 < moved < near, (wire, moved)
        assert set(outcomes) == {"applied"}
        assert sent < 0.62 * whole[2]  # besides gradients there are barriers, requests and a few numbers
    assert [number for number, what in enumerate(skipping[1]) if what == "not finite"] == [5], skipping[1]


def flat(model: nn.Module) -> Tensor:
    """The parameters in the order of the flat buffers."""
    return FlatParameters(model).values
