"""In which formats a run computes and sends: what is trained, and where it is said."""

import math

import pytest
import torch

import bigbatch
from bigbatch.experiments.runs.run import formats_of
from bigbatch.experiments.runs.table import table_of
from bigbatch.experiments.runs.weights import read_weights

SMALL = {
    "simulate": 2,
    "gpu": "a100",
    "tokens": "4k",
    "validation_tokens": 500,
    "layers": 1,
    "width": 16,
    "heads": 2,
    "context": 16,
    "vocabulary": 300,
    "arms": ("accumulated",),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    asked = {
        "fp32": {},
        "bf16": {"precision": "bf16", "wire": "bf16"},
        "fp16": {"precision": "fp16", "wire": "fp16"},
        "bf16-weights": {"precision": "bf16-weights"},
    }
    return {name: bigbatch.run("ring", out=folder / name, quiet=True, **SMALL, **own) for name, own in asked.items()}


def test_every_precision_learns_and_leaves_its_weights_in_what_it_keeps_them_in(runs):
    losses = {name: run.summary["arms"][0]["validation_loss"] for name, run in runs.items()}
    assert losses["fp32"] < math.log(300)  # of an even guess
    for name in ("bf16", "fp16"):
        assert losses[name] == pytest.approx(losses["fp32"], abs=5e-3)
        assert losses[name] != losses["fp32"]
    assert losses["bf16-weights"] == pytest.approx(losses["fp32"], abs=0.1)
    for name, run in runs.items():
        dtypes = {tensor.dtype for tensor in read_weights(run.folder, "accumulated").values()}
        assert dtypes == {torch.bfloat16 if name == "bf16-weights" else torch.float32}


def test_the_summary_the_table_and_the_timelines_title_say_it(runs):
    said = {"fp32": [], "bf16": ["computed in bf16", "sent in bf16"], "bf16-weights": ["computed in bf16-weights"]}
    for name, formats in said.items():
        assert formats_of(runs[name].folder) == formats
        _, (section,) = table_of([runs[name].summary])
        rows = [f"{label} {cell}" for label, (cell,) in section.rows if label in ("computed in", "sent in")]
        assert rows == formats
    beside = table_of([runs["fp32"].summary, runs["fp16"].summary])[1][0].rows
    assert ("computed in", ["fp32", "fp16"]) in beside
    assert ("sent in", ["fp32", "fp16"]) in beside
