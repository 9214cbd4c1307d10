"""Users' files: whatever they do while they are read, or while their rounds are made, is told in one sentence."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import quick

from bigbatch.comm import foreign
from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError, exit_status
from bigbatch.comm.schedules.schedule import Round, check_repeats, rounds_of
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.agreement import together

HELPED = "from helper import more\ndef named(size):\n    return more(size)\n"


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch):
    """Paths and modules of one test are not those of the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(foreign, "_folders", list(foreign._folders))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in ("helper", "inner"):
            del sys.modules[name]


def written(folder: Path, text: str | bytes, name: str = "mine.py") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"{folder / name}:named"


WHILE_READ = {
    "exits": ("import sys\n\nsys.exit(0)\n", r"mine.py ended the program while it was read \(.*mine.py, line 3\)"),
    "exits hard": ("import os\nos._exit(0)\n", r"mine.py ended the program while it was read \(.*mine.py, line 2\)"),
    "exits hard by name": ("from os import _exit\n_exit(0)\n", r"ended the program while it was read .*line 2\)"),
    "quits": ("quit()\n", r"ended the program while it was read"),
    "raises": ("x = 1\n\nx / 0\n", r"cannot be run: ZeroDivisionError: division by zero \(.*mine.py, line 3\)"),
    "raises no ordinary error": ("raise BaseException('no')\n", r"cannot be run: BaseException: no \(.*line 1\)"),
    "interrupts itself": ("raise KeyboardInterrupt\n", r"cannot be run: KeyboardInterrupt \(.*mine.py, line 1\)"),
    "raises what cannot be written": (
        "class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E\n",
        r"cannot be run: E \(.*mine.py, line 4\)",
    ),
    "raises a book": (
        "raise ValueError('x ' * 10**6)\n",
        r"cannot be run: ValueError: [x ]{400}… \(.*mine.py, line 1\)",
    ),
    "recurs": ("def f(): f()\nf()\n", r"cannot be run: RecursionError"),
    "no Python": ("x = 1\ndef f(:\n", r"cannot be run: SyntaxError: .* \(.*mine.py, line 2\)"),
    "no UTF-8": (b"x = '\xff'\n", r"cannot be run: SyntaxError: .*utf-8.*mine.py"),
    "NUL": (b"x = 1\0\n", r"cannot be run: SyntaxError: .*null bytes"),
    "no such neighbour": ("import nobody_here\n", r"ModuleNotFoundError: No module named 'nobody_here' \(.*line 1\)"),
    "prints for ever": ("while True:\n    print('x' * 999)\n", r"printed more than 100,000 characters .*line 2\)"),
    "becomes another": ("import os\nos.execvp('true', ['true'])\n", r"ended the program while it was read .*line 2"),
    "aborts": ("import os\nos.abort()\n", r"ended the program while it was read .*line 2"),
    "speaks to the terminal": (
        "raise ValueError('\\x1b[2Jred\\0 \\u202eleft')\n",
        r"cannot be run: ValueError: \\x1b\[2Jred\\x00 \\u202eleft \(.*mine.py, line 1\)",
    ),
    "has no name": (
        "class M(type):\n    __name__ = property(lambda _: 1 / 0)\nclass E(Exception, metaclass=M): pass\nraise E\n",
        r"cannot be run: an error \(.*mine.py, line 4\)",
    ),
    "says nothing": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E\n",
        r"cannot be run: E \(.*mine.py, line 3\)",
    ),
    "has no names of its own": (
        "def __getattr__(name):\n    return 1 / 0\n",
        r"cannot be looked up: ZeroDivisionError: .*line 2, in __getattr__",
    ),
    "a script": ("import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n", r"ended the program .*line 2"),
}


@pytest.mark.parametrize("name", WHILE_READ)
def test_what_a_file_does_while_it_is_read_is_one_sentence(tmp_path, name):
    text, sentence = WHILE_READ[name]
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        ALGORITHMS.load(written(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert exit_status(raised.value) == 2


FOR_EVER = {
    "loops": "while True:\n    pass\n",
    "sleeps": "import time\ntime.sleep(1000)\n",
    "waits": "import threading\nthreading.Event().wait()\n",
    "catches what is ordinary": "while True:\n    try:\n        1 / 0\n    except Exception:\n        pass\n",
}


@pytest.mark.parametrize("name", FOR_EVER)
def test_a_file_that_takes_for_ever_is_given_up_where_it_was(tmp_path, monkeypatch, name):
    monkeypatch.setattr(foreign, "SECONDS", 0.3)
    with pytest.raises(ConfigurationError, match=r"mine.py still ran after 0.3 s while it was read .*mine.py, line \d"):
        ALGORITHMS.load(written(tmp_path, FOR_EVER[name]))


GENERATORS = {
    "exits": ("def named(size):\n    yield from ()\n    raise SystemExit\n", r"named ended the program .*line 3"),
    "exits hard": ("import os\ndef named(size):\n    os._exit(0)\n    yield\n", r"named ended the program .*line 3"),
    "raises": (
        "def named(size):\n    yield {}[size]\n",
        r"named cannot make rounds for 4 ranks: KeyError: 4 \(.*line 2",
    ),
    "takes nothing": ("def named():\n    return []\n", r"takes 0 positional arguments but 1 was given \(.*line 1\)"),
    "takes too much": (
        "def named(a, b):\n    return []\n",
        r"missing 1 required positional argument: 'b' \(.*line 1\)",
    ),
    "gives nothing": ("def named(size):\n    pass\n", r"'NoneType' object is not iterable \(.*line 1\)"),
    "gives no rounds": ("def named(size):\n    yield 5\n", r"Round 1 of named for 4 ranks is a int. Yield rounds"),
    "never ends": (
        "from bigbatch.comm.collectives.ring import ring\ndef named(size):\n    while 1: yield from ring(size)\n",
        r"makes more than 10,128 rounds for 4 ranks",
    ),
    "asks a neighbour": (HELPED, r"KeyError: 'oops' \(.*helper.py, line 2, in more\)"),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_what_a_generator_of_rounds_does_is_one_sentence(tmp_path, name):
    text, sentence = GENERATORS[name]
    written(tmp_path, "def more(size):\n    return {}['oops']\n", "helper.py")
    algorithm = ALGORITHMS.load(written(tmp_path, text))
    with pytest.raises(ConfigurationError, match=sentence):
        rounds_of(algorithm, 4)


def test_a_generator_that_takes_for_ever_is_given_up(tmp_path, monkeypatch):
    algorithm = ALGORITHMS.load(written(tmp_path, "def named(size):\n    while size:\n        pass\n    yield\n"))
    monkeypatch.setattr(foreign, "SECONDS", 0.3)
    with pytest.raises(ConfigurationError, match=r"named still ran after 0.3 s .*\(.*mine.py, line \d, in named\)"):
        rounds_of(algorithm, 4)


NO_FILES = {
    "missing": ("none.py:named", "none.py, which should hold the algorithm, does not exist"),
    "folder": ("folder.py:named", "is a folder"),
    "pipe": ("pipe.py:named", "is no ordinary file"),
    "a number": ("number.py:named", "is of the type int, but must be a function of the number of ranks"),
    "a name that is not there": ("number.py:nobody", "There is no 'nobody' in .*It defines: named"),
    "no module": ("nobody.here:named", "The module .* cannot be imported: ModuleNotFoundError"),
    "no name of a module": (":named", "cannot be imported: ValueError"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_of_an_algorithm_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder.py").mkdir()
    os.mkfifo("pipe.py")
    Path("number.py").write_text("named = 5\n")
    with pytest.raises(ConfigurationError, match=NO_FILES[name][1]):
        ALGORITHMS.load(NO_FILES[name][0])


def test_a_function_that_does_not_say_what_it_takes_is_no_algorithm():
    with pytest.raises(ConfigurationError, match="sleep cannot be an algorithm: ValueError: no signature"):
        bind(ALGORITHMS.load("time:sleep"), 1)


@pytest.mark.parametrize("name", ["os:_exit", "os:abort", "sys:exit"])
def test_a_function_that_ends_the_program_is_no_algorithm(name):
    with pytest.raises(ConfigurationError, match=r"ended the program while it made rounds for 4 ranks\. Take"):
        rounds_of(ALGORITHMS.load(name), 4)


def test_a_file_whose_name_is_not_in_utf_8_is_read(tmp_path):
    assert callable(ALGORITHMS.load(written(tmp_path, "def named(size): return []\n", "caf\udce9.py")))


def test_a_neighbour_is_found_and_each_file_has_its_own(tmp_path):
    """As Python does for a script: fairseq 2143 reports "No module named" for a user's folder."""
    answers = {}
    for folder in ("one", "other"):
        written(tmp_path / folder, f"def more(size): return '{folder}'\n", "helper.py")
        answers[folder] = ALGORITHMS.load(written(tmp_path / folder, HELPED))
    assert {folder: answer(4) for folder, answer in answers.items()} == {"one": "one", "other": "other"}
    assert sys.path[0] != str(tmp_path / "one"), "its folder hides nothing from others afterwards"
    late = ALGORITHMS.load(
        written(tmp_path / "one", "def named(size):\n    import inner\n    return inner.x\n", "b.py")
    )
    written(tmp_path / "one", "x = 3\n", "inner.py")
    assert late(4) == 3, "an import when it is called finds the neighbour too"


def test_a_file_is_read_once_until_it_changes(tmp_path):
    path = written(tmp_path, "class named: pass\n")
    loaded = [ALGORITHMS.load(path) for _ in range(2)]
    assert loaded[0] is loaded[1]
    written(tmp_path, "class named: changed = True\n")
    assert ALGORITHMS.load(path).changed


CHANGES = {
    "a built-in function": "import builtins\nbuiltins.len = lambda _: 0\n",
    "print": "import builtins\nbuiltins.print = None\n",
    "isinstance": "import builtins\ndel builtins.isinstance\n",
    "the recursion limit": "import sys\nsys.setrecursionlimit(100)\n",
    "standard error": "import sys\nsys.stderr = None\n",
    "NumPy's errors": "import numpy\nnumpy.seterr(all='raise')\n",
    "torch's numbers": "import torch\ntorch.set_default_dtype(torch.float64)\n",
    "torch's gradients": "import torch\ntorch.set_grad_enabled(False)\n",
    "the ends of children": "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n",
    "the arguments": "import sys\nsys.argv = None\n",
    "the path": "import sys\nsys.path.clear()\n",
    "all modules": "import sys\nsys.modules.clear()\n",
    "the directory": "import os\nos.chdir('/')\n",
    "Ctrl-C": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n",
    "signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n",
    "descriptors": "import os\nos.close(1)\nos.close(2)\n",
}


def interpreter() -> list[object]:
    """What a file may change for everybody."""
    directory, mask = Path.cwd(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    descriptors = [os.fstat(number).st_ino for number in (1, 2)]
    own = [id(len), id(print), id(isinstance), sys.getrecursionlimit(), sys.stderr, "json" in sys.modules]
    own += [list(sys.argv), np.geterr(), torch.get_default_dtype(), torch.is_grad_enabled()]
    own += [signal.getsignal(signal.SIGCHLD)]
    return [*own, list(sys.path), directory, signal.getsignal(signal.SIGINT), mask, descriptors]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_file_changes_for_everybody_is_put_back(tmp_path, change):
    """hynek/structlog 404: a stream is replaced for the whole program; hydra 2414: results in another folder.

    pycogent 31, astropy/halotools 911: NumPy raises errors for everybody.
    """
    written(tmp_path, "def named(size):\n    return []\n")
    other = "other.py", "def named(size):\n    " + CHANGES[change].replace("\n", "\n    ") + "return []\n"
    makes_rounds = ALGORITHMS.load(written(tmp_path, other[1], other[0]))
    before = interpreter()
    ALGORITHMS.load(written(tmp_path, CHANGES[change] + "def named(size): return []\n"))
    assert interpreter() == before
    rounds_of(makes_rounds, 4)
    assert interpreter() == before


NEVER_STOPPED = {
    "ignores the alarm": "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True:\n    pass\n",
    "switches it off": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True:\n    pass\n",
    "catches everything": "while True:\n    try:\n        while True: pass\n    except: pass\n",
    "waits for another program": "import os\nos.system('sleep 20')\n",
}
PROGRAM = """
import sys
from bigbatch.comm import bounds, foreign, registry
foreign.SECONDS, bounds.SECONDS_OF_GRACE, bounds.LAST_RESORT = 0.3, 0.3, int(sys.argv[2])
bounds.may_end_process()
try:
    registry.Registry("algorithm", "", {}).load(sys.argv[1])
except Exception as error:
    print(error, file=sys.stderr)
    foreign.end_program(2)
foreign.end_program(0)
"""


def ended(name: str, last_resort: int = 30) -> "subprocess.CompletedProcess[str]":
    """The end of a program that reads what a file holds under this name; see `bounds.LAST_RESORT`, which counts all."""
    command = [sys.executable, "-c", PROGRAM, name, str(last_resort)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("name", quick(NEVER_STOPPED, lambda name: name == "ignores the alarm"))
def test_a_file_that_no_exception_stops_ends_the_program_in_a_sentence(tmp_path, name):
    """sematic-ai/sematic 932: the user's code has its own handler of SIGALRM."""
    done = ended(written(tmp_path, NEVER_STOPPED[name].replace("sleep 20", "exec sleep 20 >&- 2>&-")))
    assert done.returncode == 2
    assert re.fullmatch(r".*mine.py still ran after 0.3 s while it was read \(.*mine.py, line \d\).*\.\n", done.stderr)


@pytest.mark.slow
def test_a_loop_in_native_code_ends_the_program_all_the_same(tmp_path):
    done = ended(written(tmp_path, "sum(range(10**15))\n"), last_resort=4)
    assert done.returncode == 1
    assert re.search(r"mine.py\", line 1 in <module>", done.stderr)


LEFT = {
    "a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(20,)).start()\n",
    "a pool": "import concurrent.futures, time\nconcurrent.futures.ThreadPoolExecutor().submit(time.sleep, 20)\n",
    "work for the end": "import atexit, time\natexit.register(time.sleep, 20)\n",
}


@pytest.mark.parametrize("left", quick(LEFT, lambda left: left == "a thread"))
def test_what_a_file_has_left_running_does_not_keep_the_program(tmp_path, left):
    """streamlit/streamlit 17022: the interpreter joins a script's threads at its end, which may never be."""
    began = time.monotonic()
    done = ended(written(tmp_path, LEFT[left] + "def named(size): return []\n"))
    assert done.returncode == 0
    assert time.monotonic() - began < 15
    assert left == "work for the end" or done.stderr.startswith(
        "bigbatch-exp: A user's file has left something running"
    )


def test_a_rank_that_waits_for_others_at_its_end_is_not_taken_for_a_file_that_does(tmp_path):
    written(tmp_path, "import atexit\natexit.register(print, 'done')\ndef named(size): return []\n")
    watched = """
import time, weakref
from bigbatch.comm.transports.watchdog import Watchdog
class Waits:
    def _wait_for_others(self):
        time.sleep(1)
        print("and the others")
waits = Waits()
weakref.finalize(waits, Watchdog._leave, lambda: waits, __import__("os").getpid())
"""
    command = [sys.executable, "-c", watched + PROGRAM, f"{tmp_path}/mine.py:named", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\nand the others\n", "")


def test_what_other_programs_print_for_a_file_is_no_output_of_ours(tmp_path):
    text = (
        "import os, subprocess\nos.write(1, b'raw\\n')\nsubprocess.run(['echo', 'child'])\ndef named(size): return []\n"
    )
    done = ended(written(tmp_path, text))
    assert (done.stdout, done.stderr) == ("", "raw\nchild\n")


def test_what_a_file_prints_or_changes_leaves_the_program_as_it_was(tmp_path, capsys):
    text = "import os, sys\nprint('hello')\nos.chdir('/')\nsys.argv.clear()\nsys.stdout.close()\nnamed = print\n"
    directory, arguments = Path.cwd(), list(sys.argv)
    ALGORITHMS.load(written(tmp_path, text))
    print("still here")
    assert (Path.cwd(), sys.argv) == (directory, arguments)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("still here\n", "hello\n")


@pytest.mark.parametrize("change", ["sys.path.clear()", "sys.path = None", "sys.path = ['mine']", "del sys.path[3:]"])
def test_a_file_that_empties_the_path_leaves_all_that_was_on_it(tmp_path, change):
    before, path = list(sys.path), sys.path
    ALGORITHMS.load(written(tmp_path, f"import io, sys\n{change}\nnamed = print\n"))
    assert sys.path is path
    assert list(dict.fromkeys(entry for entry in sys.path if entry in before)) == list(dict.fromkeys(before))
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    "change", ["sys.stderr = None", "sys.stderr.close()", "sys.stdout = sys.stderr = io.StringIO()"]
)
def test_a_file_that_takes_standard_error_away_gives_it_back(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO()) if "close" in change else sys.stderr)
    before = sys.stdout, sys.stderr
    ALGORITHMS.load(written(tmp_path, f"import io, sys\n{change}\nnamed = print\n"))
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    "text",
    [
        "signal.raise_signal(signal.SIGINT)\n",
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise\n",
        "try:\n    signal.raise_signal(signal.SIGINT)\nfinally:\n    raise KeyboardInterrupt('me too')\n",
        "with open(__file__):\n    signal.raise_signal(signal.SIGINT)\n",
    ],
)
def test_ctrl_c_while_a_file_is_read_is_no_fault_of_the_file(tmp_path, text):
    with pytest.raises(KeyboardInterrupt) as raised:
        ALGORITHMS.load(written(tmp_path, f"import signal\n{text}"))
    assert foreign.explained(raised.value) is None


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_file_that_forks_does_not_go_on_with_the_program_twice(tmp_path):
    """Two processes would write the same results."""
    named = ALGORITHMS.load(written(tmp_path, "import os\nCHILD = os.fork()\ndef named(size):\n    return []\n"))
    child = named.__globals__["CHILD"]
    if child == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_guards_leave_other_peoples_alarms_and_exits_alone(tmp_path):
    ALGORITHMS.load(written(tmp_path, "def named(size): return 1\n"))
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    old = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with foreign.guarded("it", "be", "was"):
            pass
        time.sleep(0.4)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *old)
    assert len(rung) == 1
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_guards_in_several_threads_put_standard_output_back(capsys):
    def guard():
        for _ in range(50):
            with foreign.guarded("it", "be", "was"):
                print("beside", end="")

    threads = [threading.Thread(target=guard) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("here", end="")
    assert capsys.readouterr().out == "here"


def test_a_directory_that_is_gone_costs_no_sentence(tmp_path, monkeypatch):
    file = written(tmp_path, "1 / 0\n")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match=r"cannot be run: ZeroDivisionError: .*mine.py, line 1\)"):
        ALGORITHMS.load(file)


def test_an_error_of_a_users_code_is_told_with_its_place_by_all_ranks_alike(tmp_path):
    breaks = ALGORITHMS.load(written(tmp_path, "def named(size):\n    raise ValueError(f'odd {size}')\n"))

    def work(transport):
        try:
            together(transport, lambda: breaks(transport.rank) if transport.rank == 1 else None)
        except ConfigurationError as error:
            return str(error), error.everywhere
        return None

    (mine, _), *_ = results = Cluster(3).run(work)
    assert mine.startswith("Rank 1: ValueError: odd 1 (")
    assert mine.endswith("mine.py, line 2, in named).")
    assert all(everywhere for _, everywhere in results)


def test_rounds_that_differ_from_call_to_call_are_refused():
    calls = []

    def restless(size):
        calls.append(size)
        yield from list(ring(size))[: 6 - len(calls) % 2]

    with pytest.raises(ConfigurationError, match="Round 6 of restless for 4 ranks differs from one call to the next"):
        check_repeats(restless, 4)
    check_repeats(ring, 4)


def test_a_callable_that_has_no_name_is_an_algorithm_too(tmp_path):
    imports = "from functools import partial\nfrom bigbatch.comm.collectives.chain import chain\n"
    text = f"{imports}named = partial(chain, segments=3)\n"
    strategy = STRATEGIES.load(written(tmp_path, text))
    assert strategy.__name__ == "chain"
    strategy.check_rounds(5)


def test_a_round_keeps_its_contents_when_it_is_checked():
    (first, *_), (again, *_) = rounds_of(ring, 3), ring(3)
    assert isinstance(first, Round)
    assert (first.source == again.source).all()
    assert first.reduce.all()
