"""Models of transformers in folders: what they lack, what they have too much of, and what they must not decide."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models_of_transformers import SMALL, TASKS, answering, built, first, language, refusal, shaken, translation
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.training.assemble import Assembly
from bigbatch.experiments.training.settings import Settings
from bigbatch.models.kinds import kind_named
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.corpora import Corpus
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.tasks.tokenizer_files import vocabulary_in

transformers = pytest.importorskip("transformers")


def read(folder: Path, task, **settings):
    chosen = ModelSettings.of({"model": f"{folder}/", **settings})
    return kind_named(str(chosen.model)).build(task, chosen, 0)


def refused(folder: Path, task, **settings) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, task, **settings)
    return str(caught.value)


def changed(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


LAYERS = {"gpt2": "n_layer", "llama": "num_hidden_layers", "t5": "num_layers", "bart": "decoder_layers",
          "bert": "num_hidden_layers"}  # fmt: skip


@pytest.mark.parametrize("kind", TASKS)
def test_more_or_fewer_blocks_than_the_weights_have_are_refused(cache, tmp_path, kind):
    """transformers only logs what it draws at random, and what it leaves out."""
    task = TASKS[kind](cache)
    built(kind, task, layers=2).save(tmp_path)
    for number, said in ((3, "has no weights for "), (1, "has weights for ")):
        option = f"{LAYERS[kind]}={number}"
        by_option = refused(tmp_path, task, model_option=option)
        assert said in by_option
        assert f"leave --model-option {option} out" in by_option
    changed(tmp_path, **{LAYERS[kind]: 3})
    assert "are those of another model than its config.json" in refused(tmp_path, task)


def test_half_a_model_is_refused(cache, tmp_path):
    """Weights of an encoder alone, and of models without their output layers."""
    task = translation(cache)
    config = built("t5", task).model.config
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    assert "has no weights for decoder." in refused(tmp_path / "t5", task)
    task = language(cache)
    built("llama", task).model.model.save_pretrained(tmp_path / "llama")
    assert "has no weights for lm_head.weight" in refused(tmp_path / "llama", task)
    transformers.BertModel(built("bert", task).model.config).save_pretrained(tmp_path / "bert")
    assert "has no weights for cls.predictions." in refused(tmp_path / "bert", task)


def test_scores_of_an_answer_are_drawn_and_the_user_is_told(cache, tmp_path):
    """As transformers' own example of question answering has it: from weights without that head, with others."""
    task = answering(cache)
    whole = transformers.BertForPreTraining(built("bert", task).model.config)
    whole.save_pretrained(tmp_path)
    found = read(tmp_path, task)
    for name, value in whole.bert.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(found.model.bert.state_dict()[name], value), name
    drawn, left_out = found.remarks
    assert "has no weights for qa_outputs.bias and 1 more: they are drawn at random" in drawn
    assert "leaves out the weights bert.pooler.dense.bias and " in left_out
    assert torch.equal(read(tmp_path, task).model.qa_outputs.weight, found.model.qa_outputs.weight)
    assembly = Assembly(Settings.of({"model": f"{tmp_path}/"}), task)
    assembly.model()
    assert assembly.remarks == found.remarks
    assert read(tmp_path, language(cache)).model.config.is_decoder
    found.save(tmp_path / "again")
    assert not read(tmp_path / "again", task).remarks


@pytest.mark.slow
def test_a_run_says_once_what_was_drawn(cache, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    sizes = {"context": 160, "vocabulary": 300, "validation_tokens": 40, "tokens": 40, "task": "question-answering"}
    begun = bigbatch.run("ring", simulate=1, out=tmp_path / "one", model="hf:bert", **SMALL, **sizes, quiet=True)
    config = transformers.AutoConfig.from_pretrained(next(begun.folder.glob("model-*")))
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    run = bigbatch.run("ring", simulate=1, out=tmp_path / "two", model=str(tmp_path / "bert"), **sizes)
    said = "has no weights for qa_outputs.bias and 1 more"
    assert all(any(said in remark for remark in arm["remarks"]) for arm in run.summary["arms"])
    assert capfd.readouterr().err.count(said) == 1


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_target_starts_with_the_models_own_token(cache, tmp_path, kind):
    """T5 starts with padding; one that is started otherwise has another loss, and writes other texts."""
    task = translation(cache)
    config = built(kind, task).model.config
    config.decoder_start_token_id = config.pad_token_id
    cls = {"t5": transformers.T5ForConditionalGeneration, "bart": transformers.BartForConditionalGeneration}[kind]
    shaken(cls(config)).float().save_pretrained(tmp_path / "theirs")
    adapter = read(tmp_path / "theirs", task).eval()
    adapter.save(tmp_path / "ours")
    plain = cls.from_pretrained(tmp_path / "ours", local_files_only=True).eval()
    batch = first(task, 9)
    mask = batch.mask.long()
    with torch.no_grad():
        loss, tokens = task.loss(adapter, batch)
        theirs = plain(input_ids=batch.source, attention_mask=mask, labels=batch.targets).loss
        assert loss.item() / tokens == pytest.approx(theirs.item(), rel=1e-5)
        most = int(task.lengths("training")[:, 1].max())
        texts = plain.generate(
            input_ids=batch.source, attention_mask=mask, max_new_tokens=most, num_beams=1, do_sample=False
        )[:, 1:].tolist()
    end = task.vocabulary.end
    texts = [text[: text.index(end)] if end in text else text for text in texts]
    wanted = [task.vocabulary.decode(np.array(text, dtype=np.int32)) for text in texts]
    assert task.answers(adapter, batch) == wanted
    assert translation(cache, beam=1).answers(adapter, batch) == wanted
    said = refused(tmp_path / "ours", task, model_option=f"eos_token_id={end}")
    assert "the folder decides eos_token_id" in said


def test_positions_that_begin_behind_the_number_of_padding(cache, tmp_path):
    """RoBERTa has two positions more than it takes tokens: pad is 1. Its own error is one of torch about an index."""
    task = language(cache, context=24)
    sizes = {"vocab_size": task.vocabulary_size, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.RobertaConfig(**sizes, max_position_embeddings=22, pad_token_id=1, is_decoder=True)
    model = transformers.RobertaForCausalLM(config)
    model.save_pretrained(tmp_path)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 21), 3))
    model(torch.full((1, 20), 3))
    assert "takes at most 20 tokens, and the task's sequences have up to 24: add --context 20" in refused(
        tmp_path, task
    )
    assert read(tmp_path, language(cache, context=20))


def test_room_for_such_positions_is_asked_for_before_training(tmp_path):
    """No training example need be as long as the context, but a held-out one or a text to go on with can be."""
    words = {"[END]": 0, "[PAD]": 1, **{f"w{number}": number + 2 for number in range(20)}}
    tokenizer = Tokenizer(WordLevel(words, "[END]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[END]", "pad_token": "[PAD]"}))
    texts = tuple(f"w{number} w1 w2 w3 w4" for number in range(20))
    task = LanguageModelling.from_corpus(Corpus("words", texts, texts), vocabulary_in(tmp_path), 8)
    said = refusal("roberta", task)
    assert "takes at most 6 tokens, " in said
    assert "add --model-option max_position_embeddings=10" in said
    model = built("roberta", task, model_option="max_position_embeddings=10").model
    assert model(input_ids=torch.full((1, 8), 3)).logits.shape == (1, 8, 22)


def test_a_folder_names_no_program_and_no_other_weights(cache, tmp_path):
    """With the package kernels, transformers fetches what attn_implementation names and runs it."""
    task = language(cache)
    adapter = built("gpt2", task)
    adapter.save(tmp_path)
    kernel = "kernels-community/nothing"
    for entry in ("attn_implementation", "_attn_implementation"):
        changed(tmp_path, **{entry: kernel})
        assert read(tmp_path, task).model.config._attn_implementation == adapter.model.config._attn_implementation
    changed(tmp_path, experts_implementation=kernel, transformers_weights="others.safetensors")
    assert read(tmp_path, task).model.config._experts_implementation != kernel
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/model"}))
    assert "has an adapter_config.json" in refused(tmp_path, task)


def test_a_model_for_another_task_is_refused_in_one_sentence(cache, tmp_path):
    class Other(LanguageModelling):
        default_model = "something"

    built("gpt2", language(cache)).save(tmp_path)
    task = language(cache)
    task.__class__ = Other
    assert refused(tmp_path, task).startswith(f"The model in {tmp_path} cannot learn the task Other, which takes")
    with pytest.raises(ConfigurationError, match=r"^The model hf:gpt2 cannot learn the task Other"):
        built("gpt2", task)
