"""A user's code that fails in any phase of an experiment: one sentence with file and line, and exit status 2."""

import sys
from pathlib import Path

import pytest
from jobs import SMALL, Run

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import Registry
from bigbatch.experiments.commands.main import Commands, cli, run_program
from bigbatch.experiments.commands.options import Command

FILE = """
import os
import sys
from helper import more
from torch import nn
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.models.decoder import Decoder
from bigbatch.tasks.language_modelling import LanguageModelling

number = 5
def factory(lr): return lambda named: more("factory")
def takes_nothing(): return None
def makes_none(lr): return 5
def rates(step, steps, warm_up): return 1 / (step - 1)
def negative(step, steps, warm_up): return -1 if step == 2 else 1
def not_a_number(step, steps, warm_up): return float("nan")
def rule(optimizer, batch, base): more("rule")
def half(size): yield from list(ring(size))[: size - 1]

class PrepareRaises(LanguageModelling):
    @classmethod
    def prepare(cls, settings):
        more("prepare")

class LossRaises(LanguageModelling):
    def loss(self, model, batch):
        return more("loss")

class LossExits(LanguageModelling):
    def loss(self, model, batch):
        sys.exit(0)

class LossDies(LanguageModelling):
    def loss(self, model, batch):
        os._exit(0)

class Wanders(LanguageModelling):
    def loss(self, model, batch):
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
        return super().loss(model, batch)

class Hidden(LanguageModelling):
    def loss(self, model, batch):
        raise self.error

class Interrupts(Hidden):
    error = KeyboardInterrupt

class AsksUser(Hidden):
    error = EOFError("no answer")

class MetricsRaises(LanguageModelling):
    def metrics(self, measured):
        return more("metrics")

class MeasureRaises(LanguageModelling):
    def measure(self, model, batch):
        return more("measure")

class BuildRaises(Decoder):
    @classmethod
    def build(cls, task, settings, seed):
        more("build")

class Means(nn.Module):
    def __init__(self, vocabulary_size, layers, width, heads, depth=1):
        super().__init__()
        self.table = nn.Embedding(vocabulary_size, vocabulary_size)
    def forward(self, tokens):
        return self.table(tokens).mean(1)

class TakesMore(Means):
    def forward(self, tokens, more):
        return self.table(tokens)

class Asks(nn.Module):
    def __init__(self, colour):
        super().__init__()

class Raises(nn.Module):
    def __init__(self, layers, width, heads):
        more("module")

made = nn.Linear(1, 1)

def no_module(layers, width, heads): return None

class NotBuilt(Decoder.__mro__[1]):
    pass

class Begins(AllReduce):
    def __init__(self, transport):
        more("begins")

class Updates(AllReduce):
    def update(self, weight):
        more("updates")
"""

CASES = {
    "optimizer": (["ring", "--optimizer", "mine.py:factory"], "ValueError: factory (helper.py, line 2, in more)"),
    "optimizer takes nothing": (["ring", "--optimizer", "mine.py:takes_nothing"], "was given (mine.py, line 13)"),
    "optimizer makes none": (["ring", "--optimizer", "mine.py:makes_none"], "type int for a learning rate, but must"),
    "optimizer is none": (
        ["ring", "--optimizer", "mine.py:number"],
        "is of the type int, but must be a class",
    ),
    "schedule": (["ring", "--schedule", "mine.py:rates"], "for step 1 of 2: ZeroDivisionError: division by zero (mine"),
    "negative": (
        ["ring", "--schedule", "mine.py:negative"],
        "says at step 2 of 2 that the factor of the learning rate",
    ),
    "nan": (
        ["ring", "--schedule", "mine.py:not_a_number"],
        "at step 1 of 2 that the factor of the learning",
    ),
    "scaling": (["ring", "--scaling", "mine.py:rule"], "ValueError: rule (helper.py, line 2, in more)"),
    "prepare": (["ring", "--task", "mine.py:PrepareRaises"], "ValueError: prepare (helper.py, line 2, in more)"),
    "loss": (["ring", "--task", "mine.py:LossRaises"], "ValueError: loss (helper.py, line 2, in more)"),
    "loss exits": (["ring", "--task", "mine.py:LossExits"], "mine.py ended the program (mine.py, line 32, in loss)"),
    "loss dies": (["ring", "--task", "mine.py:LossDies"], "mine.py ended the program (mine.py, line 36, in loss)"),
    "loss interrupts": (["ring", "--task", "mine.py:Interrupts"], "KeyboardInterrupt (mine.py, line 46, in loss)"),
    "loss asks": (["ring", "--task", "mine.py:AsksUser"], "EOFError: no answer (mine.py, line 46, in loss)"),
    "metrics": (["ring", "--task", "mine.py:MetricsRaises"], "ValueError: metrics (helper.py, line 2, in more)"),
    "measure": (["ring", "--task", "mine.py:MeasureRaises"], "ValueError: measure (helper.py, line 2, in more)"),
    "build": (["ring", "--model", "mine.py:BuildRaises"], "ValueError: build (helper.py, line 2, in more)"),
    "no task": (["ring", "--task", "mine.py:BuildRaises"], "but must be a class derived from bigbatch.tasks.task.Task"),
    "no model": (
        ["ring", "--model", "mine.py:number"],
        "must be a class of torch.nn.Module, a function that makes a module, or a class derived from bigbatch.models",
    ),
    "function": (["ring", "--model", "mine.py:factory"], "mine.py:factory asks for 'lr', which nobody gives it"),
    "makes no module": (["ring", "--model", "mine.py:no_module"], "must be a torch.nn.Module, but is None"),
    "module asks": (["ring", "--model", "mine.py:Asks"], "asks for 'colour', which nobody gives it: set it by"),
    "module raises": (["ring", "--model", "mine.py:Raises"], "ValueError: module (helper.py, line 2, in more)"),
    "module takes more": (
        ["ring", "--model", "mine.py:TakesMore"],
        "which calls model(tokens) and takes (batch, sequence, vocabulary) logits: TypeError",
    ),
    "module returns no logits": (["ring", "--model", "mine.py:Means"], "takes (batch, sequence, vocabulary) logits"),
    "module is made": (["ring", "--model", "mine.py:made"], "is a module that is made already: name its class"),
    "module has no such argument": (
        ["ring", "--model", "mine.py:Means", "--positions", "learnt"],
        "--positions cannot",
    ),
    "module has no such option": (
        ["ring", "--model", "mine.py:Means", "--model-option", "depht=3"],
        "has no argument 'depht' (did you mean 'depth'?), which --model-option sets",
    ),
    "strategy begins": (["mine.py:Begins"], "ValueError: begins (helper.py, line 2, in more)"),
    "strategy updates": (["mine.py:Updates"], "ValueError: updates (helper.py, line 2, in more)"),
    "strategy is none": (["mine.py:number"], "is neither a strategy"),
    "no rounds to simulate": (
        ["simulate", "mine.py:half", "--workers", "1024"],
        "half over 256 ranks is no all-reduce",
    ),
    "on simulated ranks": (["ring", "--simulate", "2", "--task", "mine.py:LossRaises"], "ValueError: loss (helper.py"),
    "server": (["ps", "--simulate", "2", "--optimizer", "mine.py:factory"], "ValueError: factory (helper.py, line 2"),
}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "helper.py").write_text("def more(what):\n    raise ValueError(what)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper", raising=False)


def ended(monkeypatch, capsys, *words):
    """The exit status, and what was said on standard error apart from progress."""
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", *words])
    status = run_program()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bigbatch-exp: ")]
    return status, said


@pytest.mark.usefixtures("in_folder", "own_cache")
@pytest.mark.parametrize("name", CASES)
def test_whatever_fails_is_one_sentence_with_its_place(monkeypatch, capsys, name):
    words, sentence = CASES[name]
    small = [] if words[0] == "simulate" else ["--arms", "large", "--tokens", "2k", *SMALL[2:]]
    alone = [] if {"simulate", "--simulate"} & set(words) else ["-n", "1"]
    status, said = ended(monkeypatch, capsys, *words, *alone, *small)
    assert len(said) == 1
    assert sentence in said[0]
    assert status == 2


@pytest.mark.usefixtures("in_folder", "own_cache")
@pytest.mark.parametrize("simulated", [["-n", "1"], ["--simulate", "2", "--trace"]], ids=["real", "simulated"])
def test_a_loss_that_goes_to_another_directory_leaves_the_results_where_they_belong(monkeypatch, capsys, simulated):
    """facebookresearch/hydra 910: a relative path means another file, once the working directory has changed."""
    here = Path.cwd()
    words = ["ring", "--task", "mine.py:Wanders", "--out", "found", *simulated, "--arms", "large", *SMALL]
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", *words])
    assert run_program() == 0
    assert Path.cwd() == here
    traces = ["trace.json"] if "--trace" in words else []
    assert sorted(path.name for path in Path("found").iterdir()) == sorted(
        ["comparison.png", "config.json", "metrics.jsonl", "model-large.pt", "summary.json", *traces]
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("found/: ")


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("EOFError('no answer')", "EOFError: no answer"),
        ("BrokenPipeError(32, 'gone')", r"BrokenPipeError: \[Errno 32\] gone"),
        ("click.exceptions.Exit(0)", "Exit: 0"),
        ("click.Abort", "Abort"),
        ("click.UsageError('no such thing')", "UsageError: no such thing"),
        ("GeneratorExit", "GeneratorExit"),
    ],
)
def test_what_click_takes_for_its_own_is_told_when_a_users_code_raises_it(monkeypatch, raised, sentence):
    """Click ends without a word for an EOFError, a KeyboardInterrupt or a BrokenPipeError, and with 0 for an Exit."""
    Path("raises.py").write_text(f"import click\ndef f():\n    raise {raised}\n")
    command = Command("some", callback=Registry("function", "none", {}).load("raises.py:f"))
    monkeypatch.setattr(Commands, "get_command", lambda *_: command)
    with pytest.raises(ConfigurationError, match=rf"^{sentence} \(raises.py, line 3, in f\)\.$"):
        cli.main(["some"], standalone_mode=False)


@pytest.mark.usefixtures("in_folder", "own_cache")
def test_debug_shows_where(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", "show", "mine.py:number", "--debug"])
    run_program()
    assert "Traceback" in capsys.readouterr().err


def test_several_ranks_speak_with_one_voice_and_find_the_neighbour(run: Run, tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "helper.py").write_text("def more(what):\n    raise ValueError(what)\n")
    options = ["--task", "mine.py:LossRaises", "-n", "2", *SMALL]
    outcome = run("bigbatch-exp", "ring", *options, deadline=60)
    assert outcome.status == 2
    assert outcome.err.count("on rank 0: ValueError: loss (helper.py, line 2, in more)") == 1
    assert "Traceback" not in outcome.err


DIES = """
import os
from bigbatch.tasks.language_modelling import LanguageModelling

class Dies(LanguageModelling):
    def loss(self, model, batch):
        if os.environ["PMI_RANK"] == "1":
            os._exit(0)
        return super().loss(model, batch)
"""


@pytest.mark.slow
def test_a_rank_that_is_ended_by_its_file_ends_the_job(run: Run, tmp_path):
    (tmp_path / "mine.py").write_text(DIES)
    outcome = run("bigbatch-exp", "ring", "--task", "mine.py:Dies", "-n", "2", *SMALL, deadline=60)
    assert outcome.status == 2
    assert outcome.err.count("on rank 1: mine.py ended the program (mine.py, line 8, in loss)") == 1
