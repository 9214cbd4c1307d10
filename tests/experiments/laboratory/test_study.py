"""Studies: what the figures train on each task."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laboratories import Pretend, run_with

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.claims import accumulation, critical_batch, time_to_target
from bigbatch.experiments.commands.figure import FigureSettings, study_of
from bigbatch.experiments.laboratory.laboratory import identity
from bigbatch.experiments.laboratory.study import LANGUAGE_MODELLING, STUDIES, Study
from bigbatch.experiments.laboratory.sweep import Tuned, to_a_loss
from bigbatch.experiments.planning.needs import size_of
from bigbatch.experiments.planning.tradeoff import Tradeoff, fit
from bigbatch.experiments.runs.run import Run
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.models.sizes import own_size

pytestmark = pytest.mark.usefixtures("own_cache")

MODEL = {"layers": 1, "width": 64, "heads": 4}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Study]:
    """Every study on a small file: paragraphs, or pairs with targets of several lengths."""
    words = [f"{'very ' * (number**2 % 11)}fine apples, {number} of them" for number in range(1500)]
    paragraphs, pairs = tmp_path / "text.txt", tmp_path / "pairs.tsv"
    paragraphs.write_text("\n\n".join(words))
    pairs.write_text("".join(f"{number} apples\t{text}\n" for number, text in enumerate(words)))
    return {
        name: replace(study, chosen={"text": paragraphs if study.examples == "documents" else pairs})
        for name, study in STUDIES.items()
    }


@pytest.fixture
def pairs(texts: dict[str, Study]) -> Study:
    return texts["translation"]


def test_language_modelling_is_trained_as_it_always_was():
    """The options of a point tell its name, under which its run is kept."""
    laboratory = Pretend(lambda _: run_with(updates_to_target=100.0))
    sweep = to_a_loss(laboratory.study, quick=True)
    point = sweep.point(laboratory, 64, 2e-3, 12.5, 1)
    assert point.command() == (
        "bigbatch-exp ring --context 32 --vocabulary 257 --tokens 26624 --validation-tokens 2048 --layers 1 --width 64 "
        "--heads 4 --workers 1 --batch-size 64 --micro-batch 32 --arms accumulated --seed 1 --learning-rate 0.002 "
        "--optimizer adam --device cpu --target 2.6 --noise-scale"
    )
    assert identity(point) == identity(replace(point, options={**point.options, "task": None}))


def test_tokens_of_an_example_are_those_of_the_task(pairs: Study):
    assert LANGUAGE_MODELLING.example_tokens == 32
    lengths = pairs.assembly({}).task.lengths("training")
    assert lengths is not None
    mean = lengths[:, 1].mean()
    assert pairs.example_tokens == pytest.approx(mean)
    assert mean != round(mean)


def test_a_run_of_so_many_updates_sees_as_many_whole_batches(pairs: Study):
    """However uneven the mean number of tokens: the examples of an experiment are a budget of tokens over it."""
    laboratory = Pretend(lambda _: run_with(), pairs)
    sweep = to_a_loss(pairs, quick=True)
    for batch, updates in ((4, 1.0), (8, 12.3), (256, 7.0)):
        point = sweep.point(laboratory, batch, 1e-3, updates, 0)
        settings = point.request().settings
        assert settings.data.text == pairs.chosen["text"]
        examples = Assembly(settings, task_of(settings.data)).examples
        assert examples == min(math.ceil(updates), sweep.tokens(batch)) * batch


def test_batches_are_told_in_tokens_of_the_task():
    own = Tuned(8, 1e-3, {1e-3: 11.0}, (12.0,), (run_with(gradient_square=2.0, gradient_variance=60.0),), (), 12.7)
    assert own.tokens == 102
    assert critical_batch.row_of(own)["batch_tokens"] == 102
    assert critical_batch.noise_of([own]) == pytest.approx(12.7 * 30)


def test_the_size_for_simulated_time_is_that_of_the_model_that_is_trained(texts: dict[str, Study]):
    assert texts["language-modelling"].size(MODEL) == own_size(257, 32, 1, 64)
    pairs = texts["translation"]
    size = pairs.size(MODEL)
    assembly = pairs.assembly(MODEL)
    assert size.name == "encoder-decoder"
    assert size.parameters == sum(parameter.numel() for parameter in assembly.model().parameters())
    cluster = time_to_target.cluster_of(pairs)
    assert cluster.size == size
    assert cluster.workload(3, 5).tokens == round(15 * pairs.example_tokens)


def test_a_fit_tells_the_model_it_is_about(texts: dict[str, Study]):
    tradeoff = Tradeoff(50.0, 600.0)
    batches = [50.0, 100.0, 400.0, 1600.0]
    fitted = fit(batches, [tradeoff.updates(batch) for batch in batches])
    for study in texts.values():
        size = study.size(MODEL)
        written = critical_batch.as_json(fitted, size, 3.0)["model"]
        assert size_of({**written, "parts": list(written["parts"])}) == size


def test_combinations_have_one_of_the_tuned_batches_in_examples(pairs: Study):
    found, front = time_to_target.predicted(time_to_target.cluster_of(pairs), Tradeoff(50.0, 600.0), (4, 32))
    assert {one.examples for one in found} == {4, 32}
    assert {one.batch for one in found if one.examples == 32} <= {
        round(32 * pairs.example_tokens) + rounding for rounding in range(-8, 9)
    }
    tuned = {batch: Tuned(batch, 1e-3 * batch, {}, (10.0,), (), (), pairs.example_tokens) for batch in (4, 32)}
    sweep = to_a_loss(pairs, quick=True)
    point = time_to_target.simulated_point(sweep, pairs.base, tuned, front[0], 100)
    assert point.options["task"] == "translation"
    assert point.options["learning_rate"] == 1e-3 * front[0].examples


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_its_mistake_in_accumulation(name: str, texts: dict[str, Study]):
    """It divides by the tokens of each micro-batch in training only."""
    study = texts[name]
    options = {**MODEL, "task": study.ragged}
    right, wrong = study.assembly(options), study.assembly({**options, "task": accumulation.WRONG[study.ragged]})
    assert right.task.corpus_sha256 == wrong.task.corpus_sha256
    model, batch = right.model(), right.task.batch("training", np.array([1, 2, 3]))
    with torch.no_grad():
        summed, tokens = right.task.loss(model, batch)
        mistaken, one = wrong.task.loss(model, batch)
        assert one == 1
        assert float(mistaken) == pytest.approx(float(summed) / tokens)
        assert wrong.task.loss(model.eval(), batch)[1] == tokens


@pytest.mark.slow
def test_accumulation_compares_ways_of_the_tasks_own(pairs: Study):
    losses = {"translation": 3.0}

    def answer(options: Mapping[str, Any]) -> Run:
        arm = {
            "validation_loss": losses.get(options["task"], 3.5),
            "tokens_per_second": 1e4,
            "peak_memory_bytes": 1e8 * (2 if options["micro_batch"] == options["batch_size"] else 1),
        }
        return Run(Path("nowhere"), {"task": options["task"], "arms": [arm]}, [])

    laboratory = Pretend(answer, pairs)
    finding = accumulation.Figure(laboratory, quick=True).examine()
    assert finding.verdict.value == "held", finding.sentence
    assert "pairs each" in finding.asked
    (batch,) = {options["batch_size"] for options in laboratory.asked}
    assert batch & (batch - 1) == 0, "it can be halved to the end"
    assert {options["text"] for options in laboratory.asked} == {pairs.chosen["text"]}
    assert finding.rows[-1]["wrong"]
    assert finding.rows[-1]["gradient_error"] > 0.01


def test_tasks_without_a_study_are_answered_with_those_that_have_one():
    with pytest.raises(ConfigurationError, match="language-modelling, translation, summarisation"):
        FigureSettings.of({"task": "question-answering"})
    study = study_of(FigureSettings.of({"task": "translation", "text": "pairs.tsv", "target_language": "fr"}))
    assert study.base == {
        "task": "translation",
        "text": Path("pairs.tsv").resolve(),
        "source": None,
        "target_language": "fr",
    }
