"""Vocabularies in a folder, in the files in which Hugging Face's libraries keep a tokenizer."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import damaged, parsed, read_bytes, utf8, write_whole
from bigbatch.tasks.corpora import Corpus
from bigbatch.tasks.vocabulary import Vocabulary, learn_vocabulary

TOKENIZER, SPECIAL, MODEL = "tokenizer.json", "tokenizer_config.json", "config.json"
"""The files' names: the tokenizer, which of its tokens mean something special, and the model that it belongs to."""

PAD = "<|pad|>"
"""The text of the token for padding in a folder that a run writes; it has the number after the vocabulary's last."""

LARGEST_TOKENIZER = 2**28
"""Size of the largest file of a tokenizer that is read, in bytes."""


def vocabulary_in(folder: Path) -> Vocabulary:
    """Reads the vocabulary in a folder that a run or `save_pretrained` wrote, or that was downloaded.

    The token that ends a text is the tokenizer's own: its end of sentence, or else its separator.

    Raises:
        ConfigurationError: the folder has no such files, they are damaged, or no token ends a text.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} has no {TOKENIZER}, so that no vocabulary can be read from it: name a folder that a run or "
            "save_pretrained wrote, or write --vocabulary with a number."
        )
    what = f"The file {path}"
    try:
        tokenizer = Tokenizer.from_str(utf8(read_bytes(path, what, LARGEST_TOKENIZER), what))
    except Exception as error:  # tokenizers has no error of its own
        if isinstance(error, ConfigurationError):
            raise
        raise damaged(what, f"tokenizers cannot read it ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    end = _special(folder, tokenizer, "eos_token", "sep_token")
    if end is None:
        raise ConfigurationError(
            f"The tokenizer in {folder} has no token that ends a text: name one as eos_token in {SPECIAL}."
        )
    return Vocabulary(tokenizer, end, _special(folder, tokenizer, "pad_token"))


def vocabulary_for(corpus: Corpus, chosen: int | Path, cache: Path) -> Vocabulary:
    """Learn a vocabulary of so many tokens from a corpus, or read the one that a folder has.

    Args:
        corpus: the corpus.
        chosen: number of different tokens, at most, or a folder with a tokenizer.
        cache: the folder that keeps vocabularies that were learnt.

    Raises:
        ConfigurationError: the number is too small, or the folder has no vocabulary.
    """
    return vocabulary_in(chosen) if isinstance(chosen, Path) else learn_vocabulary(corpus, chosen, cache)


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write a vocabulary to a folder, where `vocabulary_in` and `transformers.AutoTokenizer` find it.

    Raises:
        OSError: a file cannot be written.
    """
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    if vocabulary.pad is None:
        tokenizer.add_special_tokens([PAD])
    end = tokenizer.id_to_token(vocabulary.end)
    pad = PAD if vocabulary.pad is None else tokenizer.id_to_token(vocabulary.pad)
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "pad_token": pad}
    write_whole(folder / TOKENIZER, tokenizer.to_str(pretty=True))
    write_whole(folder / SPECIAL, json.dumps(special, indent=2) + "\n")


def _special(folder: Path, tokenizer: Tokenizer, *names: str) -> int | None:
    """The number of the first token among these that the folder names: by its text, or by its number."""
    texts, numbers = _entries(folder / SPECIAL), _entries(folder / MODEL)
    for name in names:
        text = texts.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        number = tokenizer.token_to_id(text) if isinstance(text, str) else numbers.get(f"{name}_id")
        if isinstance(number, int) and tokenizer.id_to_token(number) is not None:
            return number
    return None


def _entries(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    what = f"The file {path}"
    found = parsed(utf8(read_bytes(path, what, LARGEST_TOKENIZER), what), what)
    if not isinstance(found, dict):
        raise damaged(what, "it is no object of JSON")
    return found
