"""Tasks whose models write: known public faults of their losses and batches, measuring on several ranks, and scores."""

from types import MappingProxyType

import numpy as np
import pytest
import sacrebleu
import torch
from bodies import strategy_named
from pairs_of_ours import SIZES, TRAINING, VALIDATION, made_up_pairs, made_up_task, new_model, vocabulary

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.experiments.training.history import summary_of
from bigbatch.experiments.training.settings import Request
from bigbatch.models.encoder_decoder import EncoderDecoder
from bigbatch.tasks.answers import AnsweringTask
from bigbatch.tasks.loss import PADDING, shifted, summed_cross_entropy
from bigbatch.tasks.scores import bleu, chrf
from bigbatch.tasks.settings import DecodingSettings
from bigbatch.tasks.summarisation import Summarisation
from bigbatch.tasks.translation import Translation
from bigbatch.training import evaluation
from bigbatch.training.batches import BatchPlan
from bigbatch.training.conformance import checks_of_model, examined
from bigbatch.training.evaluation import Examples
from bigbatch.training.trainer import Trainer
from bigbatch.training.whole_model import RandomStream

EVERYTHING = np.arange(VALIDATION)


def test_smoothing_does_not_count_padding_and_is_summed_as_the_rest_is():
    """huggingface/transformers 46731, pytorch 73205: padded is as unpadded, and the parts add up to the whole."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (3, 5), generator=generator)
    lengths = [5, 2, 1]
    for row, length in enumerate(lengths):
        targets[row, length:] = PADDING
    loss, tokens = summed_cross_entropy(logits, targets, 0.2)
    alone = [
        summed_cross_entropy(logits[row : row + 1, :length], targets[row : row + 1, :length], 0.2)
        for row, length in enumerate(lengths)
    ]
    torch.testing.assert_close(loss, sum(part for part, _ in alone), rtol=1e-14, atol=0.0)
    assert tokens == sum(lengths) == sum(count for _, count in alone)
    logarithms = logits.log_softmax(-1)
    weights = torch.zeros(3, 5, 11, dtype=torch.float64)
    for row, length in enumerate(lengths):
        for place in range(length):
            weights[row, place] = 0.2 / 11
            weights[row, place, targets[row, place]] += 0.8
    torch.testing.assert_close(loss, -(weights * logarithms).sum(), rtol=1e-13, atol=0.0)
    loss.backward()
    assert not logits.grad[1, 2:].any()
    assert not logits.grad[2, 1:].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_no_examples_has_no_loss_and_no_tokens(smoothing, training):
    """fairseq 347: a rank without data crashed, or counted something."""
    task = made_up_task(label_smoothing=smoothing)
    model = new_model(task).train(training)
    batch = task.batch("training", np.empty(0, dtype=np.int64))
    loss, tokens = task.loss(model, batch)
    assert (float(loss.detach()), tokens) == (0.0, 0)
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    with torch.no_grad():
        assert task.measure(model.eval(), batch) == []
    assert task.predict(model, []) == []


def test_targets_are_shifted_right_and_nothing_behind_the_end_counts():
    """huggingface/transformers 18249: padding in shifted targets; teacher forcing must see what decoding will."""
    task = made_up_task()
    lengths = task.lengths("training")
    examples = np.array([int(lengths[:, 1].argmax()), int(lengths[:, 1].argmin()), 7, 7])
    batch = task.batch("training", examples)
    end = vocabulary().end
    read = shifted(batch.targets, end)
    for row, example in enumerate(examples.tolist()):
        source, target = (vocabulary().encode_each([text])[0] for text in made_up_pairs().training[example])
        reads = len(source) + 1
        assert batch.source[row, :reads].tolist() == [*source, end]
        assert batch.mask[row].tolist() == [True] * reads + [False] * (batch.source.shape[1] - reads)
        writes = len(target) + 1
        assert read[row, :writes].tolist() == [end, *target]
        assert batch.targets[row].tolist() == [*target, end] + [PADDING] * (batch.targets.shape[1] - writes)
        assert lengths[example].tolist() == [reads, writes]
    assert (read >= 0).all()
    assert (read < task.vocabulary_size).all()
    assert batch.targets.shape[1] == lengths[examples, 1].max()

    model = new_model(task).double().train()
    expected = task.loss(model, batch)[0]
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(task.vocabulary_size, read.shape, generator=random)
    read[batch.targets == PADDING] = noise[batch.targets == PADDING]
    batch.source[~batch.mask] = 5
    loss, tokens = summed_cross_entropy(model(batch.source, read, batch.mask), batch.targets)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0.0)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    assert tokens == lengths[examples, 1].sum()


def test_targets_and_lengths_are_facts_of_the_data():
    task = made_up_task()
    lengths = task.lengths("training")
    assert (len(lengths), len(task.lengths("validation"))) == (TRAINING, VALIDATION)
    assert task.sizes == {"training": TRAINING, "validation": VALIDATION}
    assert task.source_tokens == pytest.approx(lengths[:, 0].mean())
    assert task.example_tokens == pytest.approx(lengths[:, 1].mean())
    assert len(set(lengths[:, 1].tolist())) > 10  # ragged, else the other tests would show little


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_too_long_texts_are_cut_or_dropped_and_counted(too_long):
    task = made_up_task(context=12, too_long=too_long)
    pairs = made_up_pairs()
    fits = {
        split: [all(len(tokens) < 12 for tokens in vocabulary().encode_each(pair)) for pair in getattr(pairs, split)]
        for split in ("training", "validation")
    }
    left = sum(not fit for each in fits.values() for fit in each)
    assert left > 10
    what = {"cut": "were cut", "drop": "were left out"}[too_long]
    assert task.remarks == (f"{left} pairs with a side of over 12 tokens {what}",)
    for split, each in fits.items():
        assert task.sizes[split] == (sum(each) if too_long == "drop" else len(each))
        assert task.lengths(split).max() <= 12
    batch = task.batch("training", np.arange(task.sizes["training"]))
    assert int((batch.targets == vocabulary().end).sum()) == task.sizes["training"]  # cut texts end, too
    assert bigbatch.conform_task(task, new_model(task)) == {}
    with pytest.raises(ConfigurationError, match="No training pair of made up has at most 1 tokens a side"):
        made_up_task(context=1, too_long="drop")


def test_references_are_not_outputs_nor_transposed():
    """sacrebleu 220: references a list a system sentence, where a list a reference set was meant, passed silently."""
    outputs = ["the cat sat on the mat", "it is raining today", "so"]
    references = ["the cat sat on a mat", "it rains today in the north", "so it is"]
    scores = made_up_task().scores(outputs, references)
    assert scores["chrF"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [references]).score)
    assert scores["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score)
    assert scores != made_up_task().scores(references, outputs)
    task = made_up_task()
    measured = [list(entry) for entry in zip("abc", references, outputs, strict=True)]
    assert task.metrics(measured) == scores
    copied = task.baseline(measured)
    assert copied["chrF"] == pytest.approx(chrf(["a", "b", "c"], references))


def test_a_corpus_is_scored_once_and_not_averaged_over_its_parts():
    outputs = ["the cat sat on the mat", "no", "it is raining today in the north"]
    references = ["the cat sat on the mat", "yes indeed it is", "it is raining today in the south"]
    measured = [["x", reference, output] for reference, output in zip(references, outputs, strict=True)]
    whole = made_up_task().metrics(measured)
    parts = [made_up_task().metrics(measured[:1]), made_up_task().metrics(measured[1:])]
    assert whole["BLEU"] == bleu(outputs, references)
    assert whole["BLEU"] != pytest.approx((parts[0]["BLEU"] + parts[1]["BLEU"]) / 2, abs=0.1)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}], ids=["plain", "smoothed"])
@pytest.mark.parametrize("kind", [Translation, Summarisation])
def test_tasks_and_models_of_ours_conform(kind, settings):
    task = made_up_task(kind, **settings)
    assert bigbatch.conform_task(task, new_model(task)) == {}


def test_the_encoder_decoder_conforms_as_a_kind_of_model():
    checks = checks_of_model(EncoderDecoder, made_up_task(), SIZES)
    assert {name: finding for name, finding in examined(checks) if finding} == {}


STRATEGIES = ["ring", "ps", "ps:async", "ps:ssp:1", "ps+colocated", "ps:async+servers=2", "no-exchange"]
"""Every kind: those whose workers are in step, and those where worker 0 looks alone."""


def measure(transport, name, examples):
    task = made_up_task()
    model = new_model(task)
    parameters, strategy = FlatParameters(model), strategy_named(name)(transport)
    strategy.start(parameters, lambda named: torch.optim.SGD(named, lr=0.0))
    plan = BatchPlan(2, 1, strategy.workers)

    def work():
        trainer = Trainer(model, task, strategy, parameters, plan, 2 * plan.global_batch, seed=1)
        before = trainer.measure(examples)
        for _ in trainer.updates():
            pass
        return before, trainer.measure(examples), trainer.validate(examples)

    result = strategy.run(work)
    strategy.close()
    return result


@pytest.fixture(scope="module")
def whole():
    """What one process measures on all held-out pairs at once, and the loss on them."""
    task = made_up_task()
    model = new_model(task).eval()
    with torch.no_grad():
        batch = task.batch("validation", EVERYTHING)
        loss, tokens = task.loss(model, batch)
        return task.measure(model, batch), float(loss) / tokens


RANKS = [*(("ring", workers) for workers in (1, 2, 3, 5)), *((name, 3) for name in STRATEGIES[1:])]


@pytest.mark.parametrize(("name", "workers"), RANKS)
def test_ranks_measure_every_example_once_and_in_order(whole, name, workers):
    """As huggingface/transformers 34242: what ranks count must be everybody's, and nobody's twice."""
    entries, loss = whole
    assert [entry[:2] for entry in entries] == [list(pair) for pair in made_up_pairs().validation]
    strategy = strategy_named(name)
    for examples in (None, 2, 7) if name == "ring" else (None,):
        results = Cluster(strategy.ranks_for(workers)).run(lambda transport, n=examples: measure(transport, name, n))
        found = [result for result in results if result is not None]
        assert len(found) == workers
        for worker, (before, after, validation) in enumerate(found):
            assert after == entries[:examples]  # once all have ended, all look
            assert before == after or (before is None and worker)
            if examples is None:
                assert validation == pytest.approx(loss, rel=1e-6)
        assert found[0][0] == entries[:examples]


class Watched(Translation):
    """Notes how many examples are measured at once, and measures what it is told to."""

    entries = staticmethod(list)

    def measure(self, model, batch):
        self.at_once = [*getattr(self, "at_once", []), len(batch.source)]
        return self.entries(super().measure(model, batch))


def watched(entries=list, micro_batch=2):
    task = made_up_task(kind=Watched)
    task.entries = entries
    examples = Examples(
        task, new_model(task), torch.device("cpu"), micro_batch, RandomStream((0, 0), torch.device("cpu"))
    )
    return task, lambda: examples.measured(None, 0, 1)


@pytest.mark.parametrize(("scores", "micro_batch", "expected"), [(3, 1, 3), (0.5, 1, 1), (3, 4, 4), (1000, 1, 64)])
def test_fewer_examples_are_measured_at_once_where_that_takes_memory(scores, micro_batch, expected, monkeypatch):
    """A large vocabulary or a long context must not cost the results when training is over."""
    task = made_up_task()
    monkeypatch.setattr(evaluation, "SCORES_AT_ONCE", int(scores * task.context * task.vocabulary_size))
    task, measured = watched(micro_batch=micro_batch)
    assert [number for number, _ in measured()] != []
    assert task.at_once[0] == min(expected, VALIDATION)


def test_a_task_that_measures_some_examples_only_is_refused():
    _, measured = watched(lambda entries: entries[1:])
    with pytest.raises(ConfigurationError, match=f"{VALIDATION - 1} entries on a batch of {VALIDATION} examples"):
        measured()


def test_examples_without_a_token_have_no_loss():
    """A task of the user's own may count none of the held-out tokens."""
    task = made_up_task()
    task.loss = lambda *_: (torch.zeros(()), 0)

    def work(transport):
        model = new_model(task)
        parameters, strategy = FlatParameters(model), strategy_named("ring")(transport)
        strategy.start(parameters, lambda named: torch.optim.SGD(named, lr=0.0))
        return Trainer(model, task, strategy, parameters, BatchPlan(2, 1, 1), 2).validate()

    (loss,) = Cluster(1).run(work)
    assert np.isnan(loss)


class Echo(AnsweringTask):
    """A user's own task that says no more than it must."""

    corpus_sha256, vocabulary_size, example_tokens = "echo", 10, 1.0
    sizes = MappingProxyType({"training": 1, "validation": 1})

    @classmethod
    def prepare(cls, settings):  # noqa: ARG003 - it takes none
        return cls()

    def batch(self, split, examples):
        raise NotImplementedError

    def loss(self, model, batch):
        raise NotImplementedError

    def answers(self, model, batch):
        raise NotImplementedError

    def trivial(self, source):
        return source

    def scores(self, outputs, references):
        return {"mine": float(outputs == references)}


def test_a_task_that_does_not_name_its_trivial_answer_has_a_summary():
    """Its name is asked for when everything is trained."""
    summary = summary_of(Request.of("ring", {}), 1, Echo(), 10, [])
    assert summary["trivial_answer"] == "the trivial answer"
    assert Echo().baseline([["a", "a", "b"]]) == {"mine": 1.0}


def test_a_length_penalty_without_a_beam_is_refused():
    with pytest.raises(ConfigurationError, match="add --beam 4"):
        made_up_task(decoding=DecodingSettings(length_penalty=1.0))
    made_up_task(decoding=DecodingSettings(beam=1, length_penalty=1.0))


def test_a_users_own_texts_are_answered_as_held_out_ones_are(whole):
    """`predict` writes what `measure` writes for the same text, whatever the beam."""
    for beam in (None, 3):
        task = made_up_task(decoding=DecodingSettings(beam=beam))
        model = new_model(task).eval()
        sources = [source for source, _ in made_up_pairs().validation]
        with torch.no_grad():
            written = task.predict(model, sources)
            entries = task.measure(model, task.batch("validation", EVERYTHING))
        assert written == [output for *_, output in entries]
        if beam is None:
            assert entries == whole[0]
