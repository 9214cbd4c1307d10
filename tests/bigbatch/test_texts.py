"""Texts of every kind: byte-order marks, a handful of characters, and words without end."""

import json
import random
import time

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.corpora import Corpus, standard_library, text_file
from bigbatch.tasks.documents import Documents
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.tasks.vocabulary import END, LONGEST_WORD, learn_vocabulary

CHOSEN = random.Random(1)

WITHOUT_SPACES = {
    "DNA": "".join(CHOSEN.choices("ACGT", k=10**6)),  # tokenizers 1313
    "one letter": "a" * 10**6,
    "spaces": " " * 500_000 + "x" + " " * 500_000,
    "Chinese": "".join(chr(CHOSEN.randrange(0x4E00, 0x9FA5)) for _ in range(333_333)),
    "digits": "".join(CHOSEN.choices("0123456789", k=10**6)),
    "emoji": "😀" * 250_000,
    "one line": " ".join("".join(CHOSEN.choices("abcdefghij", k=CHOSEN.randrange(1, 9))) for _ in range(180_000)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "DNA" else pytest.mark.slow) for name in WITHOUT_SPACES]
)
def test_a_text_without_spaces_is_prepared_in_seconds(tmp_path, name):
    text = WITHOUT_SPACES[name]
    (tmp_path / "text").write_text(text, encoding="utf-8")
    started = time.process_time()
    corpus = text_file(tmp_path / "text")
    vocabulary = learn_vocabulary(corpus, 1024, tmp_path)
    tokens = vocabulary.encode((text,))
    assert time.process_time() - started < 30  # it takes two, and took more than four minutes
    assert vocabulary.decode(tokens[:-1]) == text
    assert tokens[-1] == vocabulary.end
    again = learn_vocabulary(corpus, 1024, tmp_path)
    assert (again.encode((text[:1000],)) == vocabulary.encode((text[:1000],))).all()


@pytest.mark.slow
def test_an_ordinary_text_has_the_vocabulary_that_it_has_without_the_cut(cache, tmp_path):
    """The oracle is the library's own byte-level training, to which the cut of long words was added."""
    corpus = standard_library(cache)
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        corpus.training,
        trainers.BpeTrainer(vocab_size=1024, special_tokens=[END], initial_alphabet=letters, show_progress=False),
    )
    learnt = learn_vocabulary(corpus, 1024, tmp_path)
    assert json.loads(plain.to_str())["model"] == json.loads(learnt.tokenizer.to_str())["model"]
    held_out = [*corpus.validation, f"a word of {LONGEST_WORD} letters: {'x' * LONGEST_WORD}"]
    for text in held_out[::20]:
        assert learnt.encode((text,)).tolist() == [*plain.encode(text).ids, learnt.end]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    content = "Fünf Wörter stehen in dieser Zeile.\r\n" * 40
    (tmp_path / "text").write_text(content, encoding="utf-8", newline="")
    plain = text_file(tmp_path / "text")
    (tmp_path / "text").write_text(content, encoding="utf-8-sig", newline="")
    assert text_file(tmp_path / "text") == plain
    assert plain.training[0].startswith("F")
    (tmp_path / "text").write_text(content, encoding="utf-16")
    with pytest.raises(ConfigurationError, match=r"text is not in UTF-8: byte 0 fits no character\. Convert it"):
        text_file(tmp_path / "text")


@pytest.mark.parametrize("task", [LanguageModelling, Documents])
@pytest.mark.parametrize("text", ["short", "a", "ab cd efg", "."])
def test_a_text_of_a_few_characters_is_too_short_for_any_context(tmp_path, task, text):
    (tmp_path / "text").write_text(text)
    corpus = text_file(tmp_path / "text")
    with pytest.raises(ConfigurationError) as refused:
        task.from_corpus(corpus, learn_vocabulary(corpus, 300, tmp_path), 1)
    assert "too short" in str(refused.value)
    assert "--context" not in str(refused.value)


def test_a_text_that_is_long_enough_for_a_shorter_context_says_which(tmp_path):
    (tmp_path / "text").write_text("This text has a few words, in which a window of four tokens has room.")
    corpus = text_file(tmp_path / "text")
    vocabulary = learn_vocabulary(corpus, 300, tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        LanguageModelling.from_corpus(corpus, vocabulary, 64)
    context = int(str(refused.value).rpartition("--context ")[2].split()[0])
    LanguageModelling.from_corpus(corpus, vocabulary, context)


def test_a_text_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "text").open("wb") as file:
        file.truncate(2**30 + 2**20)  # a file of zeros that takes no room on the disk
    with pytest.raises(ConfigurationError, match="has 1,074,790,400 bytes, and at most 1,073,741,824 are read"):
        text_file(tmp_path / "text")


class Listener(nn.Module):
    """A model that notes what it reads, and says that the text ends."""

    def __init__(self, vocabulary):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.vocabulary = vocabulary

    def forward(self, tokens):
        self.read = tokens[0].tolist()
        return nn.functional.one_hot(torch.full_like(tokens, self.vocabulary.end), self.vocabulary.size).float()


def test_a_text_is_read_as_examples_of_its_task_begin(tmp_path):
    """A window has the end of a document before the next one; a document by itself starts with its first token."""
    texts = Corpus("made up", ("one two three\n\nfour five six",), ("seven eight nine\n\nten",))
    vocabulary = learn_vocabulary(texts, 300, tmp_path)
    listener = Listener(vocabulary)
    (tokens,) = vocabulary.encode_each(["two"])
    for kind, read in ((LanguageModelling, [vocabulary.end, *tokens]), (Documents, tokens)):
        assert kind.from_corpus(texts, vocabulary, 8).predict(listener, ["two"]) == ["two"]
        assert listener.read == read
    assert LanguageModelling.from_corpus(texts, vocabulary, 8).predict(listener, [""]) == [""]
    with pytest.raises(ConfigurationError, match="empty"):
        Documents.from_corpus(texts, vocabulary, 8).predict(listener, [""])
    with pytest.raises(ConfigurationError, match="the model sees 8 of a text at once"):
        Documents.from_corpus(texts, vocabulary, 8).predict(listener, ["x y z " * 9])
