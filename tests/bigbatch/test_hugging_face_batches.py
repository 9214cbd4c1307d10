"""Batches as the collators of transformers make them, and precisions: held against the models' own losses."""

import pytest
import torch
from models_of_transformers import built, first, language, shaken, translation

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.optimizers.standard import factory_of
from bigbatch.training.batches import BatchPlan
from bigbatch.training.precision import PRECISIONS
from bigbatch.training.trainer import Trainer

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_packed_examples_do_not_see_each_other(cache, kind):
    """Their positions begin anew at each, which is how attention knows; as DataCollatorWithFlattening packs them."""
    adapter = shaken(built(kind, language(cache))).eval()
    rows = [[5, 9, 11, 3], [7, 2, 8], [4, 4, 6, 1, 10]]
    examples = [{"input_ids": row} for row in rows]
    packed = transformers.DataCollatorWithFlattening(return_tensors="pt")(examples)
    assert set(packed) == {"input_ids", "labels", "position_ids"}
    loss, tokens = adapter.loss(packed)
    each = [adapter.loss({"input_ids": torch.tensor([row]), "labels": torch.tensor([row])}) for row in rows]
    assert tokens == sum(counted for _, counted in each) == 9
    torch.testing.assert_close(loss, sum(one for one, _ in each), rtol=1e-9, atol=1e-9)
    theirs = adapter.model(**packed, use_cache=False).loss  # with a cache it takes them for one text
    torch.testing.assert_close(loss / tokens, theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_on_the_left_is_as_transformers_has_it(cache, kind):
    """The first token is predicted from padding, if its label is not -100."""
    adapter = shaken(built(kind, language(cache))).eval()
    pad = adapter.model.config.pad_token_id
    tokens = torch.tensor([[pad, pad, pad, 5, 9, 11, 3], [7, 2, 8, 4, 6, 1, 10]])
    mask = (tokens != pad).long()
    labels = tokens.masked_fill(tokens == pad, -100)
    loss, counted = adapter.loss({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    places = (mask.cumsum(1) - 1).clamp(min=0)  # as generate counts them
    theirs = adapter.model(input_ids=tokens, attention_mask=mask, position_ids=places, labels=labels).loss
    assert counted == 10
    torch.testing.assert_close(loss / counted, theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_masked_prefix_of_the_labels_is_read_as_padding(cache, kind):
    """The model's own shift puts padding where a label is -100, before what counts as well as behind it."""
    task = translation(cache)
    adapter = shaken(built(kind, task)).train()
    batch = first(task, 3)
    labels = batch.targets.clone()
    labels[:, :2] = -100
    rows = {"input_ids": batch.source, "attention_mask": batch.mask.long(), "labels": labels}
    loss, tokens = adapter.loss(rows)
    torch.testing.assert_close(loss / tokens, adapter.model(**rows).loss, rtol=1e-9, atol=1e-12)
    adapter.model.config.pad_token_id = None
    with pytest.raises(ConfigurationError, match=r"set decoder_start_token_id and pad_token_id"):
        adapter.loss(rows)


def test_what_else_a_batch_has_is_passed_on_or_refused(cache):
    task = translation(cache)
    adapter = shaken(built("t5", task)).eval()
    batch = first(task, 3)
    hidden = torch.ones_like(batch.targets)
    hidden[:, 1] = 0  # a token of the target that nothing later sees
    rows = {"input_ids": batch.source, "attention_mask": batch.mask.long(), "labels": batch.targets}
    loss, tokens = adapter.loss({**rows, "decoder_attention_mask": hidden})
    theirs = adapter.model(**rows, decoder_attention_mask=hidden).loss
    torch.testing.assert_close(loss / tokens, theirs, rtol=1e-9, atol=1e-12)
    assert abs(loss - adapter.loss(rows)[0]) > 1e-3
    with pytest.raises(ConfigurationError, match=r"T5ForConditionalGeneration does not take 'length', which a batch"):
        adapter.loss({**rows, "length": torch.tensor([3])})


@pytest.mark.parametrize("precision", ["bf16", "fp16", "bf16-weights"])
def test_gpt2_trains_in_each_precision(cache, precision):
    """To nearly the loss of float32; weights and the optimiser's state are kept as the precision says."""
    task = language(cache)

    def trained(name):
        def body(transport):
            chosen = PRECISIONS[name]
            model = built("gpt2", task).to(chosen.dtype)
            parameters = FlatParameters(model)
            strategy = STRATEGIES.load("ring")(transport)
            strategy.start(parameters, factory_of(torch.optim.AdamW, lr=1e-2))
            trainer = Trainer(model, task, strategy, parameters, BatchPlan(4, 2, 1), 160, seed=3, precision=chosen)
            losses = [update.loss for update in trainer.updates()]
            state = strategy.optimizer.state.values()
            state = {value.dtype for one in state for name, value in one.items() if name != "step"}
            return losses, {parameter.dtype for parameter in model.parameters()}, state

        return Cluster(1).run(body)[0]

    losses, weights, state = trained(precision)
    plain, _, _ = trained("fp32")
    kept = torch.bfloat16 if precision == "bf16-weights" else torch.float32
    assert weights == state == {kept}
    close = 0.02 if precision == "bf16-weights" else 1e-3
    assert losses == pytest.approx(plain, rel=close)
    assert losses != plain
    assert losses[-1] < 0.7 * losses[0]
