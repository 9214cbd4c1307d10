"""The library transformers: imported when it is needed, kept quiet, and asked only for what is on this machine."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from bigbatch.comm.errors import ConfigurationError


def library() -> Any:
    """Imports transformers.

    Raises:
        ConfigurationError: it is not installed, cannot be imported, or is too old.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = import_module("transformers")
            import_module("safetensors")
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "safetensors"):
            raise _broken(error) from error
        raise ConfigurationError(
            f"{error.name} is not installed, so that no model of Hugging Face can be used: pip install 'bigbatch[hf]'"
        ) from None
    except Exception as error:  # whatever comes of a package that is there and does not work
        raise _broken(error) from error
    if int(found.__version__.partition(".")[0]) < OLDEST:
        raise ConfigurationError(
            f"transformers {found.__version__} is installed, and bigbatch needs {OLDEST}.0 or newer: pip install "
            "--upgrade 'bigbatch[hf]'"
        )
    return found


def _broken(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"transformers is installed, but cannot be imported ({type(error).__name__}: {reason(error)}), so that no "
        "model of Hugging Face can be used: pip install --upgrade 'bigbatch[hf]'"
    )


OLDEST = 5
"""The first version of transformers whose configurations say the type of each field."""


class _Silence(logging.Filter):
    """Lets nothing through while somebody wants silence.

    Attributes:
        wanted: how many contexts want it now.
    """

    wanted = 0

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - all of them
        return not self.wanted


_SILENCE = _Silence()


@contextmanager
def silent() -> Iterator[None]:
    """Keeps what transformers logs from the terminal within the context, at hardly any cost."""
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(_SILENCE)  # once, however often it is called
    _SILENCE.wanted += 1
    try:
        yield
    finally:
        _SILENCE.wanted -= 1


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps also warnings and progress bars from the terminal within the context; errors are raised as ever."""
    library()
    bars: Any = import_module("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            bars.enable_progress_bar()


@dataclass(frozen=True)
class Family:
    """The models of transformers that do one thing, each of a class of its own.

    Attributes:
        what: the name of such a model for messages, with its article.
        table: the name of the table in which transformers has their classes by kind of model.
    """

    what: str
    table: str

    def classes(self) -> Mapping[str, str]:
        """The names of the models' classes, by kind of model such as "gpt2"."""
        auto = import_module("transformers.models.auto.modeling_auto")
        table: Mapping[str, Any] = getattr(auto, self.table)
        return {kind: found if isinstance(found, str) else found[0] for kind, found in table.items()}


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "decoder": Family("a causal language model", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
        "encoder-decoder": Family("a sequence-to-sequence model", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
        "encoder": Family("a model for question answering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
    }
)
"""The families, by the name of our own kind of model that does the same."""


def reason(error: BaseException) -> str:
    """What an error of transformers says, without line breaks and its full stop."""
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__
