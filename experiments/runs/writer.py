"""Writes a run's folder while the run is in progress, and gets over a disk that becomes full."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from bigbatch.comm.files import claimed, unwritable, write_whole
from bigbatch.comm.tracing.perfetto import write_trace
from bigbatch.comm.wires.recording import Span
from bigbatch.experiments.runs.examples import EXAMPLES, examples_page
from bigbatch.experiments.runs.run import (
    CONFIG,
    METRICS,
    SUMMARY,
    TRACE,
    Run,
    as_json,
    finite,
    make_folder,
    plain_value,
    write_json,
)
from bigbatch.experiments.runs.weights import model_folder, remove_models, weights_file, write_model, write_weights
from bigbatch.models.model import SavesItself
from bigbatch.tasks.answers import Answer
from bigbatch.tasks.vocabulary import Vocabulary

SECONDS_TO_NEXT_TRY = 1.0
"""Seconds after which it is tried again to write lines that found no room."""


class RunWriter:
    """Writes a run's folder while the run is in progress.

    A disk that becomes full does not end the training: what cannot be written is told once and kept, and is written as
    soon as there is room. Nor does it cost the results if somebody else removes or changes the folder meanwhile, since
    nothing is read back from it, or if code of the user's goes to another working directory.

    Args:
        folder: the folder, which is made if it does not exist; an earlier run's files in it are replaced.
        tell: called with a sentence, without its full stop, about a file that cannot be written.

    Attributes:
        failures: sentences, without their full stops, about files that could not be written.

    Raises:
        ConfigurationError: the folder cannot be written, or another run writes there now.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self._place = folder.absolute()
        self.failures: list[str] = []
        self._tell = tell
        self._lines: list[bytes] = []
        self._written = 0
        self._whole = 0
        self._tried = 0.0
        make_folder(folder)
        self._open = ExitStack()
        self._open.enter_context(claimed(folder))
        try:
            self._claimed = self._place.stat()
            for stale in (SUMMARY, TRACE, METRICS, EXAMPLES):
                (self._place / stale).unlink(missing_ok=True)
            remove_models(self._place)
            self._metrics = self._open.enter_context((self._place / METRICS).open("ab", buffering=0))
        except OSError as error:
            self._open.close()
            raise unwritable(folder, error, what="folder") from error

    def config(self, config: dict[str, Any]) -> None:
        """Write config.json: the options that were asked for, and the environment of the run."""
        self._write(CONFIG, lambda: write_json(self._place / CONFIG, config))

    def metric(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, such as the record of an update or a validation."""
        first = self._written == len(self._lines)
        self._lines.append(json.dumps(finite(record), default=plain_value).encode() + b"\n")
        if not first and time.monotonic() < self._tried + SECONDS_TO_NEXT_TRY:
            return
        error = self._flush()
        if error is not None and first:
            self._tell(f"{_sentence(self.folder / METRICS, error)}; training goes on, and tries again")

    def trace(self, ranks: Sequence[Sequence[Span]]) -> None:
        """Write trace.json: every rank's spans so far."""
        self._write(TRACE, lambda: write_trace(self._place / TRACE, ranks))

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json: the results of the finished run."""
        self._write(SUMMARY, lambda: write_json(self._place / SUMMARY, summary))

    def weights(self, arm: str, weights: Mapping[str, Tensor]) -> None:
        """Write the weights of the model that an arm has trained."""
        self._write(weights_file(arm), lambda: write_weights(self._place / weights_file(arm), weights))

    def model(self, arm: str, model: SavesItself, weights: Mapping[str, Tensor], vocabulary: Vocabulary | None) -> None:
        """Write the model that an arm has trained, if it is saved in a form of its own, and its tokenizer."""
        folder = model_folder(arm)
        self._write(folder, lambda: write_model(self._place / folder, model, weights, vocabulary))

    def examples(self, answers: Mapping[str, Sequence[Answer]]) -> None:
        """Write examples.md: inputs, references, and what the model of each arm has written."""
        text = examples_page(answers)
        self._write(EXAMPLES, lambda: write_whole(self._place / EXAMPLES, text))

    def run(self, summary: dict[str, Any]) -> "Run":
        """Makes the run whose summary was written last, also if not all of its files could be written."""
        error = self._flush()
        if error is not None:
            self.failures.append(_sentence(self.folder / METRICS, error))
        elif not self._untouched():
            self.failures.append(f"The file {self.folder / METRICS} was removed or changed while the run wrote it")
        metrics = [json.loads(line) for line in self._lines]
        return Run(self.folder, json.loads(as_json(summary)), metrics, tuple(dict.fromkeys(self.failures)))

    def _untouched(self) -> bool:
        """Whether the metrics are still where they were written, and as long."""
        try:
            found = (self._place / METRICS).stat()
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._metrics.fileno())) and found.st_size == self._whole

    def _write(self, name: str, write: Callable[[], None]) -> None:
        try:
            if not os.path.samestat(self._place.stat(), self._claimed):
                raise FileExistsError(0, "the run's folder was moved, and another one has its name now")
            write()
        except OSError as error:
            sentence = _sentence(self.folder / name, error)
            self.failures.append(sentence)
            self._tell(sentence)

    def _flush(self) -> OSError | None:
        """Write what is still unwritten of the metrics; whole lines only, so that an interrupted run leaves such."""
        self._tried = time.monotonic()
        lines = b"".join(self._lines[self._written :])
        written = 0
        try:
            while written < len(lines):
                written += self._metrics.write(lines[written:])
        except OSError as error:
            with suppress(OSError):
                self._metrics.truncate(self._whole)
            return error
        self._whole += len(lines)
        self._written = len(self._lines)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._open.close()


def _sentence(path: Path, error: OSError) -> str:
    return f"The file {path} cannot be written: {error.strerror or error}"
