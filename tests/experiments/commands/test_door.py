"""The program's door: one sentence, or no word, also where the program cannot even begin."""

import signal
import subprocess
import sys
import weakref
from time import sleep

import pytest

from bigbatch.comm.errors import INTERRUPTED
from bigbatch.experiments import __main__ as door
from bigbatch.experiments.commands import main as program


@pytest.mark.parametrize(("package", "words"), [("click", ["--help"]), ("rich", ["show", "nobody"])])
def test_a_missing_package_is_one_sentence(package, words):
    lines = f"import sys; sys.modules[{package!r}] = None; from bigbatch.experiments.__main__ import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", lines, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("bigbatch-exp: Something that bigbatch needs cannot be imported (")
    assert ended.stderr.count("\n") == 1


def interrupted_in_an_import():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise RuntimeError("Error calling __set_name__") from error  # as Python 3.11 has it, for classes of options


def interrupted_in_a_weak_reference():
    """Python drops what is raised there, cpython 95959, and goes on: into a wait in this case."""

    class Thing:
        pass

    thing = Thing()
    watching = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    sleep(10)
    raise AssertionError(watching)


@pytest.mark.parametrize("moment", [interrupted_in_an_import, interrupted_in_a_weak_reference])
@pytest.mark.parametrize("inside", [False, True])
def test_an_interruption_ends_the_program_without_a_word_wherever_it_comes(monkeypatch, capsys, moment, inside):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", "--help"])
    monkeypatch.setattr(program, "cli" if inside else "main", lambda **_: moment())
    if inside:
        monkeypatch.setattr(program, "main", lambda: sys.exit(program.run_program()))
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [EOFError("no more"), BrokenPipeError(32, "gone"), ConnectionResetError("reset")])
def test_click_takes_no_error_of_ours_for_the_users(monkeypatch, capsys, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", "doctor"])
    monkeypatch.setattr("bigbatch.experiments.measuring.doctor.examine", fails)
    assert program.run_program() == 1
    assert f"bigbatch-exp: {type(error).__name__}: {error} (--debug shows where)\n" in capsys.readouterr().err
