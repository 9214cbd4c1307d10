"""A hook of a gradient has fired: that does not say that the gradient is whole."""

import pytest
import torch
from bodies import strategy_named
from gradient_hooks import CASES, REFUSED, Blocks, not_reentrant, reentrant, refused
from jobs import PROGRAMS, Run, launcher, quick
from torch import nn
from whole_module import Job

from bigbatch.comm.parameters import FlatParameters, square
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.training.pushes import MicroBatchSquares


@pytest.mark.parametrize(
    ("name", "ranks", "strategies"),
    quick(
        [
            ("mpirun", 2, "ring"),
            ("mpirun", 3, "ring,shared,ps"),
            ("torchrun", 2, "ring,allreduce"),
            ("mpirun", 4, "ps+servers=2"),
        ],
        lambda case: case == ("mpirun", 2, "ring"),
    ),
)
def test_a_plain_loop_is_the_oracle_on_real_wires(run: Run, name, ranks, strategies):
    outcome = run(*launcher(name, ranks), PROGRAMS / "gradient_hooks.py", strategies, deadline=120)
    assert outcome.status == 0, outcome.err
    assert "all is well" in outcome.out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_plain_loop_is_the_oracle_in_one_process(case):
    Cluster(3).run(lambda transport: case(Job(strategy_named("ring"), transport)))


@pytest.mark.parametrize("case", REFUSED)
def test_every_rank_in_one_process_raises_the_error(case):
    Cluster(3).run(lambda transport: refused(Job(strategy_named("ring"), transport), case))


class Rows(nn.Module):
    """A table whose gradients are sparse, looked up twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rows = nn.Embedding(5, 3, sparse=True).double()

    def forward(self, x, _=0):
        return self.rows(torch.tensor([1, 2, 1])).pow(2).sum() * x.sum()


@pytest.mark.parametrize("how", [reentrant, not_reentrant, "sparse"])
def test_squares_of_a_micro_batch_are_those_of_the_whole_gradient(how):
    """Backward adds to a gradient in several goes, whose squares do not add up to the square of their sum."""

    def module():
        return Rows() if how == "sparse" else Blocks(Job(strategy_named("ring"), Alone()), lambda _: [0, 1, 0], how)

    measured, plain = module(), module()
    parameters = FlatParameters(measured)
    squares = MicroBatchSquares(parameters)
    expected, data = [], torch.randn(3, 4, 3, dtype=torch.float64)
    for x in data:
        measured(x).sum().backward()
        squares.end_draw()
        plain.zero_grad()
        plain(x).sum().backward()
        expected.append(float(sum(square(parameter.grad.to_dense()) for parameter in plain.parameters())))
    squares.complete(parameters.gradients)
    assert squares.of(3).of_each == pytest.approx(sum(expected) / 3, rel=1e-12)
