"""`--compile`: what is computed stays the same, and what compiling takes is in no update."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from jobs import SMALL, Run
from torch import nn

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.runs.weights import read_weights
from bigbatch.experiments.training.settings import Settings
from bigbatch.models.blocks import Block, TransformerShape
from bigbatch.models.decoder import Transformer
from bigbatch.training.compiling import CompiledParts

SHAPE = TransformerShape(50, 16, 3, 32, 4, dropout=0.3)
pytestmark = pytest.mark.filterwarnings("default")  # torch's own code warns while it compiles
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Else what an earlier test has compiled would be taken, and what this one compiles stay."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


def compiled_graphs() -> int:
    """The graphs that torch has compiled so far in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_without_a_compiler_one_sentence_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigurationError, match=r"^--compile needs a C\+\+ compiler, but there is no no-such-compiler"
    ):
        CompiledParts(nn.Linear(1, 1))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r"there is no g\+\+ and no clang\+\+ here: install"):
        CompiledParts(nn.Linear(1, 1))


def test_a_simulated_clock_does_not_see_it():
    with pytest.raises(ConfigurationError, match="a simulated clock does not see: leave it out"):
        Settings.of({"simulate": 2, "compile": True})


@compiler
def test_nothing_is_compiled_before_it_is_called_and_names_stay():
    model, plain = Transformer(SHAPE, 1), Transformer(SHAPE, 1)
    graphs = compiled_graphs()
    CompiledParts(model)
    assert compiled_graphs() == graphs
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_gradients_and_dropout_are_those_without(recompute):
    """To rounding in float32; one compilation serves batches of all sizes, and none follows for sizes of 1."""
    sizes = (4, 16), (16, 16), (3, 7), (1, 9), (5, 1)
    tokens = [torch.arange(rows * columns).view(rows, columns) % 50 for rows, columns in sizes]
    models = [Transformer(replace(SHAPE, recompute=recompute), 1) for _ in range(2)]
    compiled, before = CompiledParts(models[1]), compiled_graphs()
    hooks = []
    for part in models[1].modules():
        if isinstance(part, Block):
            part.contract.weight.register_post_accumulate_grad_hook(hooks.append)
    counts = []
    for batch in tokens:
        losses = []
        for model in models:
            torch.manual_seed(5)
            model.zero_grad()
            loss = model(batch).logsumexp(-1).sum()
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
        counts.append(compiled_graphs() - before)
        if len(batch) == 3:
            compiled.settle()
    assert counts[0] >= 1
    assert counts[-1] == counts[0]
    assert len(hooks) == SHAPE.layers * len(tokens)
    generators = [model.eval().generator() for model in models]
    with torch.no_grad():
        for column in tokens[0].t():
            one, other = (generator.advance(column) for generator in generators)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert compiled_graphs() - before == counts[0]


@compiler
@pytest.mark.slow
def test_two_ranks_end_where_they_end_without_it(run: Run, tmp_path):
    """Each compiles for itself, before the first update; validations, weights and predictions go on working."""
    losses = []
    for words in ([], ["--compile"]):
        folder = tmp_path / ("compiled-run" if words else "run")
        outcome = run(
            *("bigbatch-exp", "ring", "-n", "2", *SMALL, "--arms", "large,accumulated", "--bucket-size", "1", *words),
            *("--out", str(folder)),
            deadline=280,
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled"),
        )
        assert outcome.status == 0, outcome.err
        arms = bigbatch.Run.read(folder).summary["arms"]
        losses.append([arm[which] for arm in arms for which in ("training_loss", "validation_loss")])
        assert list(read_weights(folder, "large")) == list(read_weights(tmp_path / "run", "large"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class Doubles(nn.Module):
    """No model of ours, with a size that it looks at, so that each other size is compiled anew."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(11, 11))

    def forward(self, tokens):
        return self.weight[tokens] * (2 if len(tokens) % 2 else 3)


@compiler
@pytest.mark.slow
def test_once_settled_nothing_is_compiled_again():
    model = Doubles()
    plain = copy.deepcopy(model)
    compiled, before = CompiledParts(model), compiled_graphs()
    counts = []
    for rows in (4, 6, 5, 7):
        tokens = torch.arange(2 * rows).view(rows, 2) % 11
        made = model(tokens)
        made.sum().backward()
        torch.testing.assert_close(made, plain(tokens))
        compiled.settle()
        counts.append(compiled_graphs() - before)
    assert counts == [1, 1, 1, 1]
    other = Doubles()
    CompiledParts(other)
    other(tokens)
    assert compiled_graphs() - before == 2, "the next model is compiled again"
