"""A vocabulary: byte pairs that are learnt from the training text (Sennrich et al. 2016), or a tokenizer's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bigbatch.comm.cache import keep, kept
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import damaged
from bigbatch.tasks.corpora import Corpus

END = "<|end|>"
"""The text of the token that stands after every document."""

SMALLEST = 257
"""Size of the smallest vocabulary: 256 bytes and the end of a document, with which any text can be written."""


LONGEST_WORD = 252
"""Length at which a word is cut, in bytes.

Learning takes time that grows with the square of a word's length, so that a text without spaces, such as DNA, would
take hours. A number that 2, 3 and 4 divide does not cut through the letters of a text of one script."""


class Vocabulary:
    """Turns text into token numbers and back: by byte pairs that were learnt here, or as a user's tokenizer does it.

    Args:
        tokenizer: the tokenizer.
        end: number of the token after every document.
        pad: number of the token for padding; None if there is none.

    Attributes:
        tokenizer: the tokenizer.
        size: number of different tokens; it can be less than asked for if the text is short.
        end: number of the token after every document.
        pad: number of the token for padding; None if there is none.
    """

    def __init__(self, tokenizer: Tokenizer, end: int, pad: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.size: int = 1 + max(tokenizer.get_vocab().values())
        self.end = end
        self.pad = pad

    def encode(self, documents: tuple[str, ...]) -> NDArray[np.int32]:
        """Encodes documents as token numbers, (tokens,): one document after the other, with an end token after each."""
        pieces = [
            [*encoding.ids, self.end]
            for encoding in self.tokenizer.encode_batch(list(documents), add_special_tokens=False)
        ]
        return np.concatenate([np.empty(0, dtype=np.int32), *(np.array(piece, dtype=np.int32) for piece in pieces)])

    def token_bytes(self) -> NDArray[np.int64] | None:
        """Counts the bytes that each token stands for, (size,); one with a special meaning, such as an end, has none.

        Returns None if tokens do not stand for bytes, as they do in a vocabulary that was learnt here.
        """
        if not isinstance(self.tokenizer.decoder, decoders.ByteLevel):
            return None
        special = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        lengths = np.zeros(self.size, dtype=np.int64)
        for text, number in self.tokenizer.get_vocab().items():
            lengths[number] = 0 if number in special else len(text)  # byte level: each character is a byte
        return lengths

    def encode_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each text by itself as token numbers, without an end token."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Encodes each text by itself, without an end token.

        Returns:
            For each text, its token numbers, and for each token its first character and the one after its last. A
            character of several tokens belongs to each of them.
        """
        return [
            (encoding.ids, encoding.offsets)
            for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, tokens: NDArray[np.int32]) -> str:
        """Decodes token numbers, (tokens,), to text."""
        return str(self.tokenizer.decode(tokens.tolist()))


def learn_vocabulary(corpus: Corpus, size: int, cache: Path) -> Vocabulary:
    """Learn the byte pairs of a corpus's training text, or read them from `cache`.

    Pairs never cross from one word into the next. Words are as GPT-2 has them, and cut after `LONGEST_WORD` bytes.

    Args:
        corpus: the corpus, of which only the training text is used.
        size: number of different tokens, at most.
        cache: the folder that keeps vocabularies; it need not exist.

    Raises:
        ConfigurationError: the size is less than 257.
    """
    if size < SMALLEST:
        raise ConfigurationError(
            f"A vocabulary of {size} tokens cannot write every text: it takes at least {SMALLEST}, 256 bytes and the "
            "end of a document."
        )
    key = hashlib.sha256(f"{corpus.sha256} {size} {LONGEST_WORD} {tokenizers.__version__}".encode()).hexdigest()[:16]
    file = cache / f"vocabulary-{key}.kept"
    if (found := kept(file, _vocabulary)) is not None:
        return _learnt(found)
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), cut])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.training, trainer)
    keep(file, tokenizer.to_str())
    return _learnt(tokenizer)


def _learnt(tokenizer: Tokenizer) -> Vocabulary:
    end = tokenizer.token_to_id(END)
    assert end is not None, "every vocabulary is learnt with it"
    return Vocabulary(tokenizer, end)


def _vocabulary(content: str, what: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # tokenizers has no error of its own
        raise damaged(what, f"tokenizers cannot read it ({error})") from error
