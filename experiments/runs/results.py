"""The results of a command: kept first, then shown, then drawn; what fails names itself and leaves the rest."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bigbatch.comm.errors import BigBatchError, ConfigurationError, IncompleteError
from bigbatch.comm.files import replacing, unwritable
from bigbatch.comm.wires.life import doing
from bigbatch.experiments.runs.run import SUMMARY, write_json

SHOWN = 12
"""Of characters that a font lacks, how many are named."""


class Results:
    """Keeps, shows and draws what a command has found, each step by itself, so that a failure costs nothing else.

        with Results(folder) as results:
            results.keep(summary)
            results.show(lambda: print_rows(console(), rows))
            results.draw("scaling.png", lambda path: draw_scaling(rows, path))

    Leaving the context raises one error about all steps that failed. An error that is raised inside it, by something
    else than a step, goes its way.

    Args:
        folder: the folder of the results.
        failures: sentences, without their full stops, about what has failed already.

    Attributes:
        failures: such sentences about all steps that have failed.
    """

    def __init__(self, folder: Path, failures: Sequence[str] = ()) -> None:
        self.folder = folder
        self.failures = list(failures)
        self._first: Exception | None = None
        self._boxes = False

    def keep(self, content: dict[str, Any], name: str = SUMMARY) -> None:
        """Write a JSON file in the folder."""
        path = self.folder / name
        self.attempt(f"The file {path} cannot be written", lambda: write_json(path, content))

    def show(self, show: Callable[[], object]) -> None:
        """Prints results by calling `show`; if that fails, the other steps go on."""
        self.attempt("The results cannot be printed", show)

    def draw(self, name: str, draw: Callable[[Path], object]) -> None:
        """Draw a figure to a file in the folder: `draw` gets the path to write, and the file is whole or not there.

        What draws should be imported by `draw` itself, for a drawing library that cannot start is a failure like
        others.
        """
        path = self.folder / name

        def write() -> None:
            try:
                with doing(f"drawing {name}"), replacing(path) as part, own_look(), boxes() as lacking:
                    draw(part)
            except OSError as error:
                raise unwritable(path, error, "--out") from error
            if lacking and not self._boxes:
                self._boxes = True
                characters = " ".join(list(dict.fromkeys(lacking))[:SHOWN])
                print(
                    f"The figure {path} has boxes in place of characters that Matplotlib's font lacks: {characters}.",
                    file=sys.stderr,
                    flush=True,
                )

        self.attempt(f"The figure {path} cannot be drawn", write)

    def attempt(self, failed: str, action: Callable[[], object]) -> None:
        """Do something that other steps do not need.

        Args:
            failed: what has failed if this fails, as a sentence without its full stop.
            action: what is done.
        """
        try:
            action()
        except BigBatchError as error:
            self.fail(error, f"{failed}: {error}" if not isinstance(error, ConfigurationError) else str(error))
        except Exception as error:  # of a drawing library, which has no one error, or a fault of ours
            self.fail(error, f"{failed}: {type(error).__name__}: {' '.join(str(error).split())}")

    def fail(self, error: Exception, sentence: str) -> None:
        """Notes that something has failed: the error, and a sentence about it."""
        self._first = self._first or error
        self.failures.append(sentence.rstrip("."))

    def close(self) -> None:
        """Ends the steps.

        Raises:
            IncompleteError: some have failed; the message names each.
        """
        if self.failures:
            raise IncompleteError(f"{'; '.join(dict.fromkeys(self.failures))}.") from self._first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


@contextmanager
def own_look() -> Iterator[None]:
    """Has Matplotlib draw in its own way within the context, not as the user has set it up for other figures.

    Such a set-up may need programs that are not there, such as LaTeX, or make a figure of other colours and sizes than
    its labels speak of.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        yield


@contextmanager
def boxes() -> Iterator[list[str]]:
    """Collects the characters that Matplotlib's font lacks, of which it would warn one by one; other warnings go on."""
    lacking: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lacking
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            lacking.append(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
