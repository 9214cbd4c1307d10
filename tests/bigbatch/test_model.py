"""The Transformer, its loss, the corpus and the vocabulary."""

import math

import numpy as np
import pytest
import torch

from bigbatch.comm.errors import ConfigurationError
from bigbatch.models.blocks import Attention, TransformerShape
from bigbatch.models.decoder import Transformer
from bigbatch.tasks.corpora import Corpus, standard_library, text_file
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.tasks.loss import PADDING, summed_cross_entropy
from bigbatch.tasks.vocabulary import learn_vocabulary

SHAPE = TransformerShape(vocabulary=13, context=7, layers=2, width=8, heads=2)


def test_attention_is_the_published_formula():
    torch.manual_seed(0)
    attention, x = Attention(SHAPE, causal=True).double(), torch.randn(3, 7, 8, dtype=torch.float64)
    query, key, value = (attention.query_key_value.weight.chunk(3)[i] for i in range(3))
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = x @ query[rows].T, x @ key[rows].T, x @ value[rows].T
        scores = q @ k.transpose(1, 2) / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(attention(x), torch.cat(heads, -1) @ attention.output.weight.T)


def test_a_token_sees_itself_and_what_came_before_only():
    model = Transformer(SHAPE)
    tokens = torch.arange(7)[None]
    changed = tokens.clone()
    changed[0, 4] = 9
    differs = (model(tokens) != model(changed)).any(-1)[0].tolist()
    assert differs == [False] * 4 + [True] * 3


def test_embeddings_are_tied_and_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    one = Transformer(SHAPE, seed=4)
    torch.manual_seed(2)
    two = Transformer(SHAPE, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.tokens.weight, Transformer(SHAPE, seed=5).tokens.weight)
    width, layers = 8, 2
    assert (
        sum(p.numel() for p in one.parameters()) == (13 + 7) * width + layers * (12 * width**2 + 9 * width) + 2 * width
    )


def test_loss_is_summed_and_counts_what_is_not_padding():
    logits = torch.randn(2, 3, 13, dtype=torch.float64)
    targets = torch.tensor([[1, PADDING, 3], [PADDING, PADDING, 5]])
    loss, count = summed_cross_entropy(logits, targets)
    logarithms = logits.log_softmax(-1)
    assert count == 3
    assert loss.item() == pytest.approx(-(logarithms[0, 0, 1] + logarithms[0, 2, 3] + logarithms[1, 2, 5]).item())


class Successor(torch.nn.Module):
    """Is sure that the next token's number is one more."""

    def forward(self, tokens):
        return torch.nn.functional.one_hot((tokens + 1) % 10, 10).double()


NUMBERS = np.array([0, 1, 2, 5, 6, 3, 4, 9], dtype=np.int32)  # `Successor` is right after 0, 1, 5 and 3, of seven


def test_accuracy_is_the_share_of_next_tokens_that_are_right_without_padding():
    task = LanguageModelling({"validation": NUMBERS}, 4, 10, "")
    apart = [task.measure(Successor(), task.batch("validation", np.array([window])))[0] for window in (0, 1)]
    together = task.measure(Successor(), task.batch("validation", np.array([1, 0])))  # the shorter one is padded
    assert apart == together[::-1]
    assert task.metrics(apart) == task.metrics(together) == {"accuracy": 4 / 7}
    assert task.metrics([]) == {}


@pytest.mark.parametrize("size", [257, 300])
def test_bits_per_byte_are_the_bits_of_all_tokens_over_the_bytes_of_the_text(tmp_path, size):
    """Whatever the vocabulary, over the length of the text in UTF-8 (Gao et al. 2020, section 3.1)."""
    corpus = Corpus("test", ("the cat sat on the mat, ünlikely. " * 20,), ("the cat, the mat ünd the \N{SNOWMAN}",))
    vocabulary = learn_vocabulary(corpus, size, tmp_path)
    task = LanguageModelling.from_corpus(corpus, vocabulary, context=5)  # the last window is shorter
    table = torch.randn(size, vocabulary.size, generator=torch.Generator().manual_seed(0))
    measured = task.measure(lambda tokens: table[tokens], task.batch("validation", np.arange(task.sizes["validation"])))
    encoded = vocabulary.encode(corpus.validation)
    predicted = vocabulary.decode(encoded[1:]).encode()  # the first token is no target
    pairs = zip(encoded[:-1].tolist(), encoded[1:].tolist(), strict=True)
    bits = -sum(math.log2(float(table[one].softmax(0)[other])) for one, other in pairs)
    assert task.metrics(measured)["bits per byte"] == pytest.approx(bits / len(predicted), rel=1e-5)


def test_windows_cover_the_text_once_and_the_last_is_padded():
    tokens = {"training": np.arange(10, dtype=np.int32), "validation": np.arange(5, dtype=np.int32)}
    task = LanguageModelling(tokens, context=4, vocabulary_size=10, corpus_sha256="")
    assert task.sizes == {"training": 3, "validation": 1}
    batch = task.batch("training", np.array([2, 0]))
    assert batch.tokens.tolist() == [[8, 9, 0, 0], [0, 1, 2, 3]]
    assert batch.targets.tolist() == [[9, PADDING, PADDING, PADDING], [1, 2, 3, 4]]


def test_standard_library_has_text_and_holds_some_out(cache):
    corpus = standard_library(cache)
    words = sum(len(text.split()) for text in corpus.training + corpus.validation)
    assert words > 150_000
    assert not set(corpus.training) & set(corpus.validation)
    assert 0.08 < len(corpus.validation) / len(corpus.training) < 0.13
    again = standard_library(cache)  # kept there
    assert again.sha256 == corpus.sha256


def test_vocabulary_writes_any_text_and_is_learnt_from_training_text_alone(tmp_path):
    corpus = Corpus("test", ("the cat sat on the mat " * 20,), ("zebra zebra zebra zebra",))
    vocabulary = learn_vocabulary(corpus, 300, tmp_path)
    text = "Ünlikely \N{SNOWMAN} zebra\n"
    assert vocabulary.decode(vocabulary.encode((text,))[:-1]) == text
    assert len(vocabulary.encode(("zebra",))) == 6  # five letters and the end: nothing was learnt of it
    assert len(vocabulary.encode((" the",))) == 2
    assert vocabulary.size <= 300
    kept = learn_vocabulary(corpus, 300, tmp_path)
    assert kept.encode((text,)).tolist() == vocabulary.encode((text,)).tolist()
    with pytest.raises(ConfigurationError, match="257"):
        learn_vocabulary(corpus, 256, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"", "empty"), (b" \n", "empty"), (b"a\xff\xfe", "not in UTF-8"), (b"a\0b", "NUL")],
)
def test_a_text_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        text_file(path)
