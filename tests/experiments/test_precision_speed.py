"""What is said about a precision that does not pay, and what a precision costs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bigbatch.experiments.measuring import precision_costs
from bigbatch.experiments.training import precision_speed
from bigbatch.experiments.training.settings import Settings
from bigbatch.training.precision import PRECISIONS


def said(monkeypatch, seconds, *, micro_batches=1, **settings):
    """What is said if things take so long, in seconds: in the precision, without it, a product of matrices in it, and
    one without."""
    left = list(seconds)

    def measured(attempt):
        attempt()
        return left.pop(0)

    monkeypatch.setattr(precision_speed, "fastest", measured)
    trainer = SimpleNamespace(
        worker=0,
        device=torch.device("cpu"),
        batches=SimpleNamespace(micro_batches=lambda *_: [None] * micro_batches),
        warm_up=lambda *_: None,
    )
    return precision_speed.remark_on(trainer, Settings.of(settings)), len(left)


@pytest.mark.parametrize("name", ["fp32", "bf16-weights"])
def test_nothing_is_measured_where_everything_is_in_one_precision(monkeypatch, name):
    assert said(monkeypatch, [1.0, 1.0, 1.0, 1.0], precision=name) == ("", 4)


def test_nothing_is_said_where_it_pays_or_there_is_nothing_to_compute(monkeypatch):
    assert said(monkeypatch, [1.0, 1.6], precision="bf16") == ("", 0)
    assert said(monkeypatch, [1.05, 1.0], precision="bf16") == ("", 0)
    assert said(monkeypatch, [9.0, 1.0], precision="bf16", micro_batches=0) == ("", 2)


def test_a_machine_that_gains_with_wider_matrices_is_told_of_from_the_preset_that_has_them(monkeypatch):
    found = "A micro-batch takes 1.5 times as long in bf16 as in fp32 here: its matrices are too small to gain. "
    gaining = [1.5, 1.0, 0.5, 1.0]
    assert said(monkeypatch, gaining, precision="bf16") == (found + "Larger ones do: try --model small", 0)
    for model in ("small", "hf:gpt2", "my_file.py:MyModel"):
        sentence, _ = said(monkeypatch, gaining, precision="bf16", model=model)
        assert sentence == found + "--precision fp32 is quicker"


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp16-unscaled"])
def test_a_machine_that_computes_slowly_in_it_is_told_of(monkeypatch, name):
    sentence, _ = said(monkeypatch, [30.0, 1.0, 30.0, 1.0], precision=name)
    assert sentence.startswith(f"A micro-batch takes 30.0 times as long in {name} as in fp32 here: this machine ")
    assert sentence.endswith("--precision fp32 is quicker")


def test_the_memory_of_a_layer_is_that_of_its_weights_and_of_what_backward_needs():
    """A layer of 30 × 20 weights without a bias keeps its input, of which the weight's gradient is made."""

    class Task:
        @staticmethod
        def loss(model, batch):
            return model(batch).sum(), len(batch)

    layer, batch = nn.Linear(30, 20, bias=False), torch.randn(7, 30)
    weights = 4 * (4 * 600)  # with their gradients and Adam's two averages
    for name, itemsize in (("fp32", 4), ("bf16", 2)):
        assert precision_costs._bytes(layer, Task(), batch, PRECISIONS[name]) == weights + itemsize * 7 * 30
    followed = precision_costs._bytes(layer, Task(), batch.requires_grad_(), PRECISIONS["bf16"])
    assert followed == weights + 2 * 7 * 30 + 2 * 600  # the input's gradient is made of the weights in bf16
