"""The program's door: `bigbatch-exp`, and `python -m bigbatch.experiments` for launchers that start modules.

It imports nothing that can be missing, or that takes long, before it can say so in a sentence.
"""

import sys
from signal import SIGINT, pthread_kill
from threading import Timer, get_ident
from typing import Any, NoReturn

from bigbatch.comm.errors import INTERRUPTED, in_words

MOMENT = 0.02
"""Seconds until an interruption that came where no error can be raised is tried again."""


def main() -> NoReturn:
    """Runs the program and ends this process, in one sentence or without a word if the program cannot even begin.

    It cannot where a package is missing that reads command lines or prints, or where the user interrupts its imports.
    """
    sys.unraisablehook = interrupt_again
    try:
        from bigbatch.experiments.commands.main import main as program

        program()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        from bigbatch.comm.foreign import comes_of_interruption

        if comes_of_interruption(error):
            sys.exit(INTERRUPTED)
        if "--debug" in sys.argv:
            raise
        sys.exit(f"bigbatch-exp: {in_words(error) or f'{type(error).__name__}: {error} (--debug shows where)'}")


def interrupt_again(lost: Any) -> None:
    """Interrupts the program a moment later, where Ctrl-C came in code whose errors Python drops.

    Such code is what runs when an object is no longer needed; imports have some. All else is told as Python tells it.
    """
    if issubclass(lost.exc_type, KeyboardInterrupt):
        Timer(MOMENT, pthread_kill, (get_ident(), SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()
