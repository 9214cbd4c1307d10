"""Models of Hugging Face: held against transformers itself, and against our own decoding."""

import io
import json
import logging
import socket
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from models_of_transformers import (
    TASKS,
    WORDS,
    answering,
    built,
    first,
    language,
    refusal,
    sentences,
    shaken,
    translation,
)
from torch import nn

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.models.fitting import check_fits
from bigbatch.models.kinds import kind_named
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.corpora import Corpus
from bigbatch.tasks.decoding import Recomputed, beam, greedy
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.tasks.sequence_to_sequence import recomputed
from bigbatch.tasks.tokenizer_files import vocabulary_in
from bigbatch.tasks.vocabulary import learn_vocabulary

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects to anything fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a test has asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("kind", TASKS)
def test_the_same_weights_everywhere_and_no_dropout_unless_it_is_asked_for(cache, kind):
    """GPT-2, T5, BART and BERT drop a tenth by default."""
    task = TASKS[kind](cache)
    torch.manual_seed(7)
    one = built(kind, task)
    state = torch.get_rng_state()
    torch.manual_seed(8)
    same, other = built(kind, task), built(kind, task, seed=1)
    torch.manual_seed(7)
    built(kind, task)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
    assert any(not torch.equal(parameter, other.get_parameter(name)) for name, parameter in one.named_parameters())
    with torch.no_grad():
        losses = {float(task.loss(model, first(task))[0]) for model in (one.train(), one.train(), one.eval())}
        assert len(losses) == 1
        if kind != "llama":
            dropping = built(kind, task, dropout=0.5).train()
            assert len({float(task.loss(dropping, first(task))[0]) for _ in range(3)}) == 3


@pytest.mark.parametrize("kind", TASKS)
def test_sizes_are_the_users_and_special_tokens_the_tasks(cache, kind):
    task = TASKS[kind](cache)
    config = built(kind, task, width=24, heads=3, layers=2).model.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (24, 3, 2)
    for name, value in {"decoder_layers": 2, "num_decoder_layers": 2, "d_kv": 8, "decoder_attention_heads": 3}.items():
        assert getattr(config, name, value) == value
    inner = ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner")
    assert {getattr(config, name) for name in inner if hasattr(config, name)} == {96}
    assert config.vocab_size == task.vocabulary_size + 1
    assert config.pad_token_id == task.vocabulary_size
    assert config.eos_token_id == task.vocabulary.end
    assert getattr(config, "max_position_embeddings", task.context) == task.context
    if kind in ("t5", "bart"):
        assert config.decoder_start_token_id == task.vocabulary.end
        assert getattr(config, "forced_eos_token_id", None) is None


def their_loss(model, kind, batch):
    """The loss that transformers itself computes, which is a mean, from a batch as its collators make it."""
    if kind in ("gpt2", "llama"):  # its labels are the tokens, which it shifts by itself
        rows = {"input_ids": batch.tokens, "labels": batch.tokens}
    elif kind in ("t5", "bart"):
        mask = torch.ones_like(batch.source) if batch.mask is None else batch.mask.long()
        rows = {"input_ids": batch.source, "attention_mask": mask, "labels": batch.targets}
    else:
        mask = torch.ones_like(batch.tokens) if batch.mask is None else batch.mask.long()
        rows = {"input_ids": batch.tokens, "attention_mask": mask, "token_type_ids": batch.passage.long()}
        rows |= {"start_positions": batch.targets[:, 0], "end_positions": batch.targets[:, 1]}
    return rows, model(**rows).loss


@pytest.mark.parametrize("kind", TASKS)
def test_losses_and_gradients_are_those_of_transformers(cache, kind):
    """Its own path through labels is a mean over tokens; for questions, over examples and the two ends."""
    task = TASKS[kind](cache)
    batch = first(task)
    if kind in ("gpt2", "llama"):  # windows of the same length, for the model's own loss counts every token
        assert (batch.targets >= 0).all()
    adapter = shaken(built(kind, task)).train()
    rows, theirs = their_loss(adapter.model, kind, batch)
    ours, tokens = adapter.loss(rows)
    single = kind in ("gpt2", "llama")  # whose losses are computed in float32 whatever the model is
    close = {"rtol": 1e-5, "atol": 1e-6} if single else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(ours / tokens, theirs.double(), **close)
    theirs.backward()
    expected = {name: parameter.grad.clone() for name, parameter in adapter.named_parameters()}
    adapter.zero_grad()
    if single:
        assert tokens == batch.tokens[:, 1:].numel()
        logits = adapter(batch.tokens)
        assert torch.equal(logits, adapter.model(input_ids=batch.tokens).logits)
        wanted = nn.functional.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="sum")
        torch.testing.assert_close(task.loss(adapter, batch)[0], wanted, rtol=1e-12, atol=1e-12)
    elif kind != "bert":  # where our task looks at tokens of the passage alone
        ours, counted = task.loss(adapter, batch)
        assert counted == tokens == int((batch.targets >= 0).sum())
        torch.testing.assert_close(ours / tokens, theirs, rtol=1e-12, atol=1e-12)
    (ours / tokens).backward()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **close)


def test_spans_are_scored_by_the_model(cache):
    task = answering(cache)
    adapter, batch = shaken(built("bert", task)).eval(), first(task)
    mask = None if batch.mask is None else batch.mask.long()
    called = adapter.model(input_ids=batch.tokens, attention_mask=mask, token_type_ids=batch.passage.long())
    scores = adapter(batch.tokens, batch.passage, batch.mask)
    assert torch.equal(scores, torch.stack([called.start_logits, called.end_logits], -1))
    masked = [side.masked_fill(~batch.passage, -torch.inf) for side in (called.start_logits, called.end_logits)]
    wanted = sum(
        nn.functional.cross_entropy(side, batch.targets[:, i], reduction="sum") for i, side in enumerate(masked)
    )
    torch.testing.assert_close(task.loss(adapter, batch)[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_uneven_micro_batches_add_up_to_one_loss(cache, kind):
    """huggingface/transformers 35438: losses were means of micro-batches; these ignore num_items_in_batch."""
    task = translation(cache)
    adapter, numbers = shaken(built(kind, task)), np.arange(7)
    whole, tokens = task.loss(adapter, task.batch("training", numbers))
    parts = [task.loss(adapter, task.batch("training", part)) for part in (numbers[:1], numbers[1:3], numbers[3:])]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-12, atol=1e-12)
    assert sum(counted for _, counted in parts) == tokens
    means = sum(loss.item() / counted for loss, counted in parts) / 3
    assert abs(means - whole.item() / tokens) > 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(cache, kind, side):
    """huggingface/transformers 3021 and 21080: positions of tokens behind padding were counted with it."""
    task = language(cache)
    adapter = shaken(built(kind, task)).eval()
    tokens = torch.tensor([[5, 9, 11, 3]])
    pad = torch.full((1, 3), task.vocabulary_size)
    padded = torch.cat([pad, tokens] if side == "left" else [tokens, pad], 1)
    place = slice(3, None) if side == "left" else slice(None, 4)
    found = adapter(padded, padded != task.vocabulary_size)[:, place]
    torch.testing.assert_close(found, adapter(tokens), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert"])
def test_models_that_return_tuples(cache, kind, monkeypatch):
    task = TASKS[kind](cache)
    adapter, batch = built(kind, task).eval(), first(task)
    with torch.no_grad():
        named = task.loss(adapter, batch)[0]
        written = task.answers(adapter, batch) if kind == "t5" else None
        if kind == "gpt2":  # which itself does not stand `return_dict = False`
            forward = type(adapter.model).forward
            monkeypatch.setattr(
                type(adapter.model), "forward", lambda *args, **named: tuple(forward(*args, **named).values())
            )
            adapter = bigbatch.from_transformers(adapter.model)
        else:
            adapter.model.config.return_dict = False
        assert torch.equal(task.loss(adapter, batch)[0], named)
        if written is not None:
            plain = recomputed(adapter, batch)
            start, end = torch.full((6,), task.vocabulary.end), task.vocabulary.end
            cached = beam(adapter.generator(batch.source, batch.mask), start, end, 5, 2, 0.6)
            assert cached == beam(plain(), start, end, 5, 2, 0.6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generate_goes_on_as_our_own_greedy_decoding(cache, kind):
    task = language(cache, context=16)
    adapter = shaken(built(kind, task)).eval()
    with torch.no_grad():
        for text in sentences(3, 9):
            prompt = torch.tensor([task.vocabulary.end, *task.vocabulary.encode_each([text])[0]][:8])[None]
            ours = Recomputed(lambda tokens, _: adapter(tokens), 1)
            for token in prompt[0, :-1]:
                ours.advance(token[None])
            wanted = greedy(ours, prompt[:, -1], task.vocabulary.end, 9)
            assert adapter.continued(prompt, task.vocabulary.end, 9) == wanted
            assert adapter.continued(prompt, task.vocabulary.end, 0) == [[]]
        assert task.predict(adapter, ["the of"])[0].startswith("the of")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_model_that_writes_writes_what_our_own_decoding_finds(cache, kind):
    task = translation(cache)
    adapter, batch = shaken(built(kind, task)).eval(), first(task, 9)
    assert batch.mask is not None
    # Settings of the model's own for generating must not change what is compared: facebook/bart-large-cnn has these.
    adapter.model.generation_config.update(no_repeat_ngram_size=2, min_length=5, forced_bos_token_id=3)
    start, end = torch.full((9,), task.vocabulary.end), task.vocabulary.end
    with torch.no_grad():
        plain = recomputed(adapter, batch)
        wanted = greedy(plain(), start, end, 7)
        assert adapter.continued(batch.source, batch.mask, start[:, None], end, 7) == wanted
        for beams, penalty in ((1, 0.6), (3, 0.6), (4, 0.0)):
            cached = beam(adapter.generator(batch.source, batch.mask), start, end, 7, beams, penalty)
            assert cached == beam(plain(), start, end, 7, beams, penalty)
    assert adapter.model.generation_config.no_repeat_ngram_size == 2
    assert len(task.answers(adapter, batch)) == 9


def test_a_beam_as_wide_as_all_texts_finds_what_the_beam_search_of_transformers_finds():
    """Both then find the likeliest text, although they stop by different rules."""
    config = transformers.T5Config(
        vocab_size=5, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
        pad_token_id=4, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    adapter = shaken(bigbatch.from_transformers(transformers.T5ForConditionalGeneration(config))).eval()
    source = torch.randint(1, 4, (6, 5))
    with torch.no_grad():
        ours = beam(adapter.generator(source), torch.zeros(6, dtype=torch.int64), 0, 3, 125, 0.0)
        theirs = adapter.model.generate(
            input_ids=source, attention_mask=torch.ones_like(source), num_beams=125, max_new_tokens=3,
            length_penalty=0.0, early_stopping="never", do_sample=False,
        )[:, 1:].tolist()  # fmt: skip
    assert [[token for token in text if token != 4] for text in ours] == [
        [token for token in (text[: text.index(0)] if 0 in text else text) if token != 4] for text in theirs
    ]


def test_tied_weights_are_counted_once_and_stay_tied(cache, tmp_path):
    """huggingface/accelerate 3154: weights that were tied before a copy or a move were two afterwards."""
    for kind in ("gpt2", "t5", "bart"):
        task = TASKS[kind](cache)
        adapter = built(kind, task)
        output = adapter.model.get_output_embeddings().weight
        assert output is adapter.model.get_input_embeddings().weight
        counted = sum(parameter.numel() for parameter in adapter.parameters())
        flat = FlatParameters(adapter)
        assert flat.values.numel() == counted
        flat.values.add_(0.25)
        assert adapter.to(torch.device("cpu")).model.get_output_embeddings().weight is output
        assert adapter.model.get_input_embeddings().weight is output
        state = {name: value.clone() for name, value in adapter.state_dict().items()}
        before = task.loss(adapter.eval(), first(task))[0].item()
        adapter.save(tmp_path / "now")  # of parameters that are parts of one buffer
        adapter.save(tmp_path / kind, state)
        files = [tmp_path / folder / "model.safetensors" for folder in ("now", kind)]
        assert files[0].read_bytes() == files[1].read_bytes()
        size = sum(path.stat().st_size for path in (tmp_path / kind).glob("*.safetensors"))
        assert size < 4 * counted + 20_000
        saved = type(adapter.model).from_pretrained(tmp_path / kind, local_files_only=True)
        assert task.loss(bigbatch.from_transformers(saved).eval(), first(task))[0].item() == before


@pytest.mark.parametrize("kind", TASKS)
def test_a_folder_reads_as_it_was_written(cache, tmp_path, kind):
    task = TASKS[kind](cache)
    adapter = built(kind, task, seed=3)
    adapter.save(tmp_path)
    settings = ModelSettings(model=str(tmp_path))
    found = kind_named(f"{tmp_path}/").build(task, settings, seed=0)
    for name, value in adapter.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert found.training == adapter.training


def test_a_model_that_cannot_be_written_is_an_error_of_the_disk(cache, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    adapter = built("gpt2", language(cache))
    monkeypatch.setattr(type(adapter.model), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        adapter.save(tmp_path)


def test_what_a_folder_cannot_have(cache, tmp_path):
    task = language(cache)
    adapter = built("gpt2", task)
    adapter.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(folder: Path = tmp_path, learnt=task, **settings: object) -> str:
        with pytest.raises(ConfigurationError) as caught:
            kind_named(f"{folder}/").build(learnt, ModelSettings.of({"model": f"{folder}/", **settings}), 0)
        return str(caught.value)

    def changed(**entries: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **entries}))

    assert "does not exist" in refused(tmp_path / "nothing")
    assert "--width cannot be used with the model" in refused(width=32)
    assert "which transformers does not have as a sequence-to-sequence model" in refused(learnt=translation(cache))
    changed(vocab_size=100)
    assert "cannot be read" in refused()
    changed(n_layer=3)
    assert "has no weights for transformer.h.1." in refused()
    changed(quantization_config={"load_in_8bit": True})
    assert "quantised" in refused()
    changed(model_type="nobodys", auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert "is of the kind 'nobodys'" in refused()
    changed(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    kind_named(f"{tmp_path}/").build(task, ModelSettings(model=f"{tmp_path}/"), 0)
    changed(resid_pdrop=0.1)
    again = kind_named(f"{tmp_path}/").build(task, ModelSettings(model=f"{tmp_path}/"), 0)
    assert again.model.config.resid_pdrop == 0.0
    changed()
    assert "takes at most 8 tokens, and the task's sequences have up to 9: add --context 8" in refused(
        learnt=language(cache, context=9)
    )
    bigger = Corpus("words", ("a b c d e f g " * 40, *sentences(300, 11)), sentences(40, 1))
    other = LanguageModelling.from_corpus(bigger, learn_vocabulary(bigger, 300, cache), 8)
    assert f"add --vocabulary {tmp_path}" in refused(learnt=other)
    torch.save(adapter.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert "pytorch_model.bin can hold a program, and is not read" in refused()


def test_a_folders_tokenizer_can_be_the_vocabulary(cache, tmp_path):
    """Of a downloaded model: other tokens, more rows than tokens, an end of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[PAD]": 0, "[UNK]": 1, "[END]": 2, **{word: 3 + number for number, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = {"eos_token": {"content": "[END]"}, "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, bos_token_id=2, eos_token_id=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    vocabulary = vocabulary_in(tmp_path)
    assert (vocabulary.size, vocabulary.end, vocabulary.pad) == (23, 2, 0)
    assert vocabulary.encode(("the of", "and")).tolist() == [3, 4, 2, 5, 2]
    corpus = Corpus("words", sentences(200, 0), sentences(40, 1))
    task = LanguageModelling.from_corpus(corpus, vocabulary, 8)
    found = kind_named(str(tmp_path)).build(task, ModelSettings(model=str(tmp_path)), 0)
    measured = task.measure(found.eval(), task.batch("validation", np.arange(4)))
    assert "bits per byte" not in task.metrics(measured)
    with pytest.raises(ConfigurationError, match=r"knows 40 tokens, and the task has 280: add --vocabulary"):
        kind_named(str(tmp_path)).build(language(cache), ModelSettings(model=str(tmp_path)), 0)
    assert built("gpt2", task).model.config.vocab_size == 23
    assert built("gpt2", task).model.config.pad_token_id == 0
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert vocabulary_in(tmp_path).end == 2  # as config.json says
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"has no token that ends a text"):
        vocabulary_in(tmp_path)


def test_what_is_not_taken_is_refused_by_name(cache):
    task = language(cache)
    assert "has no option 'n_embed' (did you mean 'n_embd'?)" in refusal("gpt2", task, model_option={"n_embed": 3})
    assert "--width 16 and --model-option n_embd=32 contradict" in refusal("gpt2", task, model_option="n_embd=32")
    assert "--width 16 and --model-option n_embd=32 contradict" in refusal("gpt2", task, model_option="hidden_size=32")
    assert "expected int, got str" in refusal("gpt2", task, model_option="n_inner=wide")
    assert "expected int, got float" in refusal("gpt2", task, model_option="n_inner=2.5")
    assert "the task needs vocab_size=281 or more" in refusal("gpt2", task, model_option="vocab_size=280")
    assert "n_embd and hidden_size are one field" in refusal(
        "gpt2", task, width=None, model_option=["n_embd=16", "hidden_size=16"]
    )
    assert "--dropout 0.2 and --model-option resid_pdrop=0.3" in refusal(
        "gpt2", task, dropout=0.2, model_option="resid_pdrop=0.3"
    )
    assert "the task decides eos_token_id" in refusal("gpt2", task, model_option="eos_token_id=3")
    assert "--positions cannot be used with the model hf:gpt2" in refusal("gpt2", task, positions="learnt")
    assert "--norm cannot be used with the model hf:gpt2" in refusal("gpt2", task, norm="post")
    assert "--model-option attention_dropout=0.1" in refusal("llama", task, dropout=0.1)
    assert "(did you mean 'gpt2'?)" in refusal("gpt22", task)
    assert "transformers has t5 only as a sequence-to-sequence model" in refusal("t5", task)
    assert "has no field for --heads" in refusal("mamba", task)


def test_options_have_the_types_of_their_fields_and_other_kinds_work_as_well(cache):
    task = language(cache)
    chosen = ["n_inner=20", "scale_attn_weights=false", "activation_function=relu", "layer_norm_epsilon=1e-3"]
    config = built("gpt2", task, model_option=chosen).model.config
    assert (config.n_inner, config.scale_attn_weights, config.activation_function) == (20, False, "relu")
    assert config.layer_norm_epsilon == 1e-3
    assert built("llama", task, model_option="num_key_value_heads=1").model.config.num_key_value_heads == 1
    assert built("bert", task).model.config.is_decoder  # it would see what it should predict
    # Its positions are counted from the number of the token for padding.
    assert built("roberta", task, model_option="max_position_embeddings=300")


@pytest.mark.parametrize("context", [2, 8, 40])
@pytest.mark.parametrize("width", [16, 96])
def test_a_model_that_sees_what_follows_is_refused(cache, tmp_path, context, width):
    """BERT does unless its configuration says is_decoder; with initial weights it hardly attends to anything."""
    task = language(cache, context)
    bidirectional = {"model_option": "is_decoder=false", "width": width}
    assert "sees the tokens that follow" in refusal("bert", task, **bidirectional)
    built("bert", task, width=width).save(tmp_path)
    folder = str(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^The model in .* sees the tokens that follow"):
        kind_named(folder).build(task, ModelSettings.of({"model": folder, "model_option": "is_decoder=false"}), 0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "mamba"])
def test_a_model_that_does_not_is_taken_and_stays_as_it_was(cache, kind):
    sizes = {"heads": None} if kind == "mamba" else {}
    for context in (1, 2, 8, 40):
        task = language(cache, context)
        model = built(kind, task, **sizes)
        dropping = next(part for part in model.modules() if part is not model)
        dropping.eval()
        modes = [part.training for part in model.modules()]
        check_fits(model, task, "The model")
        assert [part.training for part in model.modules()] == modes


def test_blocks_that_are_set_on_one_side_are_as_many_on_the_other(cache):
    """T5's own configuration has as many in its decoder as in its encoder, if it is told nothing else."""
    task = translation(cache)
    config = built("t5", task, layers=None, model_option="num_layers=3").model.config
    assert (config.num_layers, config.num_decoder_layers) == (3, transformers.T5Config(num_layers=3).num_decoder_layers)
    both = ["encoder_layers=3", "decoder_layers=1"]
    config = built("bart", task, layers=None, model_option=both).model.config
    assert (config.encoder_layers, config.decoder_layers) == (3, 1)


def test_what_from_transformers_refuses(cache):
    config = built("t5", translation(cache)).model.config
    model = transformers.T5ForConditionalGeneration(config)
    # T5 keeps its feed-forward output in float32 when the rest is loaded as float16.
    half = model.half()
    half.encoder.block[0].layer[1].DenseReluDense.wo.float()
    with pytest.raises(ConfigurationError, match=r"shared.weight is float16, .*DenseReluDense.wo.weight is float32"):
        bigbatch.from_transformers(half)
    with pytest.raises(ConfigurationError, match="T5EncoderModel is none of a causal language model"):
        bigbatch.from_transformers(transformers.T5EncoderModel(config))
    with pytest.raises(ConfigurationError, match="takes a model of transformers"):
        bigbatch.from_transformers(nn.Linear(1, 1))

    class Mine(transformers.T5ForConditionalGeneration):
        pass

    adapter = bigbatch.from_transformers(Mine(config))
    with pytest.raises(ConfigurationError, match="has no 'labels'; it has 'input_ids'"):
        adapter.loss({"input_ids": torch.ones(1, 2, dtype=torch.int64)})


@pytest.mark.parametrize("kind", TASKS)
def test_the_size_for_simulated_time(cache, kind):
    """Operations as torch counts them, which leaves out those of norms and of attention's softmax."""
    from torch.utils.flop_counter import FlopCounterMode

    task = TASKS[kind](cache)
    settings = ModelSettings.of({"model": f"hf:{kind}", "layers": 2, "width": 32, "heads": 2})
    size = kind_named(str(settings.model)).size(task, settings)
    adapter = kind_named(str(settings.model)).build(task, settings, 0)
    assert size.parameters == sum(p.numel() for p in adapter.parameters()) == sum(size.parts)
    numbers = np.arange(32)
    with FlopCounterMode(display=False) as counter:
        loss, tokens = task.loss(adapter, task.batch("training", numbers))
        loss.backward()
    assert 0.6 < counter.get_total_flops() / tokens / size.flops_per_token < 1.6


def test_what_transformers_tells_stays_from_the_terminal_and_only_ours(cache, capfd, tmp_path):
    """LED warns of padding in its forward pass, and saving and loading draw a bar."""
    logger = transformers.logging.get_logger("transformers.models.led.modeling_led")
    verbosity = transformers.logging.get_verbosity()
    handler = next(one for one in logging.getLogger("transformers").handlers if type(one) is logging.StreamHandler)
    before = handler.setStream(told := io.StringIO())
    task = translation(cache)
    transformers.logging.set_verbosity_info()
    try:
        adapter = built("led", task).eval()
        task.loss(adapter, first(task))
        adapter.save(tmp_path)
        kind_named(str(tmp_path)).build(task, ModelSettings(model=str(tmp_path)), 0)
        assert (told.getvalue(), *capfd.readouterr()) == ("", "", "")
        logger.warning("somebody else's")
        assert "somebody else's" in told.getvalue()
    finally:
        handler.setStream(before)
        transformers.logging.set_verbosity(verbosity)
    assert transformers.logging.is_progress_bar_enabled()


def test_without_transformers_one_sentence_names_the_extra(cache, monkeypatch):
    import sys

    task = language(cache)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refusal("gpt2", task).endswith("pip install 'bigbatch[hf]'")
    with pytest.raises(ConfigurationError, match=r"pip install 'bigbatch\[hf\]'"):
        bigbatch.from_transformers(nn.Linear(1, 1))


def test_a_package_that_does_not_work_is_not_called_absent(monkeypatch):
    """Such as a tokenizers of another version, or a package that transformers imports and that is not there."""
    from bigbatch.models.hugging_face import library

    for error, said in (
        (ImportError("tokenizers>=0.22 is required"), "cannot be imported (ImportError: tokenizers>=0.22 is required)"),
        (ModuleNotFoundError("No module named 'regex'", name="regex"), "cannot be imported (ModuleNotFoundError: No m"),
        (ModuleNotFoundError("No module named 'safetensors'", name="safetensors"), "safetensors is not installed"),
    ):
        raising = Mock(side_effect=error)
        monkeypatch.setattr(library, "import_module", raising)
        with pytest.raises(ConfigurationError) as caught:
            library.library()
        assert said in str(caught.value)


@pytest.mark.parametrize("kind", TASKS)
def test_blocks_that_are_computed_again_have_the_same_gradients(cache, kind):
    task = TASKS[kind](cache)
    batch = task.batch("training", np.arange(3))
    found = []
    for recompute in (False, True):
        model = built(kind, task, recompute=recompute, **({} if kind == "llama" else {"dropout": 0.2}))
        torch.manual_seed(5)
        task.loss(model.train(), batch)[0].backward()
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) == recompute
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
