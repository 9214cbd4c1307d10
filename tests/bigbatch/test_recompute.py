"""`--recompute`: blocks are computed again in backward, which changes memory and time and nothing else."""

from dataclasses import replace

import pytest
import torch
from bodies import Sequences
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.api import run
from bigbatch.experiments.training.assemble import kind_of_model
from bigbatch.experiments.training.settings import Settings
from bigbatch.models.blocks import Block, TransformerShape
from bigbatch.models.decoder import Decoder, Transformer
from bigbatch.models.encoder import EncoderTransformer
from bigbatch.models.encoder_decoder import EncoderDecoderTransformer
from bigbatch.models.model import Model
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.language_modelling import LanguageModelling

SHAPE = TransformerShape(50, 16, 3, 32, 4)
TOKENS = torch.arange(32).view(2, 16) % 50
MASK = TOKENS % 16 < 12
CALLS = {
    Transformer: lambda model: model(TOKENS),
    EncoderDecoderTransformer: lambda model: model(TOKENS, TOKENS, MASK),
    EncoderTransformer: lambda model: model(TOKENS, TOKENS > 30, MASK),
}
MODELS = pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)


def loss_of(kind, model):
    return CALLS[kind](model).float().logsumexp(-1).sum()


@MODELS
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_the_same_bit_for_bit(kind, dtype, dropout, autocast):
    """The same random numbers are dropped, and the same operations run in the same precision (pytorch 57515, 48439)."""
    found = []
    for recompute in (False, True):
        model = kind(replace(SHAPE, dropout=dropout, recompute=recompute), 1).to(dtype)
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(kind, model)
        loss.backward()
        found.append([loss.detach(), torch.rand(3), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert len(set(map(float, found[0][1]))) == 3


def passes(model, do):
    """How often blocks run while something is done."""
    count = 0

    def counts(*_):
        nonlocal count
        count += 1

    for block in model.modules():
        if isinstance(block, Block):
            block.register_forward_pre_hook(counts)
    do()
    return count


@MODELS
def test_every_block_runs_once_more_only_where_there_are_gradients(kind):
    model = kind(replace(SHAPE, recompute=True), 1)
    blocks = sum(isinstance(part, Block) for part in model.modules())
    with torch.no_grad():
        assert passes(model, lambda: CALLS[kind](model)) == blocks
    assert passes(kind(replace(SHAPE, recompute=True), 1), lambda: None) == 0
    model = kind(replace(SHAPE, recompute=True), 1)
    assert passes(model, lambda: loss_of(kind, model).backward()) == 2 * blocks


def test_text_is_written_from_what_was_kept():
    """A generator computes a token's keys and values once, whatever is recomputed in training."""
    plain, again = (Transformer(replace(SHAPE, recompute=recompute), 1) for recompute in (False, True))
    generators = [plain.generator(), again.generator()]
    for column in TOKENS.t():
        one, other = (generator.advance(column) for generator in generators)
        assert torch.equal(one, other)


@MODELS
def test_what_backward_needs_is_kept_for_the_blocks_inputs_only(kind):
    def kept(recompute):
        model, sizes = kind(replace(SHAPE, recompute=recompute), 1), {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(kind, model)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        assert loss.requires_grad
        return sum(size for address, size in sizes.items() if address not in own)

    assert kept(recompute=True) < kept(recompute=False) / 3


class Fixed(Model):
    """A model that knows nothing of recomputing."""

    @classmethod
    def build(cls, *_, **__):
        return nn.Linear(2, 2)


def test_a_model_that_cannot_refuses_by_name(monkeypatch):
    monkeypatch.setattr("bigbatch.models.kinds.MODELS.load", lambda _: Fixed)
    settings = Settings.of({"model": "fixed.py:Fixed", "recompute": True})
    with pytest.raises(ConfigurationError, match=r"fixed.py:Fixed does not say that it can.*--recompute"):
        kind_of_model(settings, LanguageModelling)
    assert kind_of_model(settings.changed({"recompute": False}), LanguageModelling) is Fixed


def test_a_size_counts_what_is_computed_once_more():
    """All of forward but the output layer, of 2 operations forward for each of its weights."""
    task = Sequences()
    task.default_positions = "learnt"
    once, again = (Decoder.size(task, ModelSettings(recompute=recompute)) for recompute in (False, True))
    assert once == replace(again, recomputed=0.0)
    width, blocks = 96, 2
    attention = 2 * 2 * task.context * width
    forward = blocks * (2 * (12 * width**2 + 9 * width) + attention) + 2 * 2 * width
    assert again.recomputed * again.flops_per_token / 3 == pytest.approx(forward)
    assert Fixed.size(task, ModelSettings(recompute=True)).recomputed == 1


def test_a_simulated_clock_is_charged_for_it(tmp_path):
    """Losses are those without it; computing takes as much longer as the operations are more."""
    small = {"simulate": 2, "tokens": 600, "validation_tokens": 200, "layers": 1, "width": 16, "heads": 2}
    small |= {"context": 16, "vocabulary": 300, "batch_size": 8, "arms": "large", "weights": False}
    found = [
        run("ring", **small, recompute=recompute, out=tmp_path / str(recompute), quiet=True).summary["arms"][0]
        for recompute in (False, True)
    ]
    assert found[0]["validation_loss"] == found[1]["validation_loss"]
    output, all_of_it = 300 * 16, 12 * 16**2 + 9 * 16 + 2 * 16 + 300 * 16 + 2 * 16 * 16
    again = 1 - output / all_of_it
    assert found[1]["compute_seconds"] / found[0]["compute_seconds"] == pytest.approx(1 + again / 3, rel=1e-6)
