"""`bigbatch-exp check`: the kit that fits, a line for each check, and an exit status that tells."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from jobs import Run

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.commands.streams import TWINS
from bigbatch.experiments.measuring.examine import kind_of
from bigbatch.experiments.measuring.kits import KITS

FILE = """
from functools import partial

import torch

from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.models.decoder import Decoder
from bigbatch.tasks.language_modelling import LanguageModelling

number = 5
unnamed = partial(ring)


def plain(size):
    yield from ring(size)


def listed(size):
    return list(ring(size))


def half(size):
    yield from list(ring(size))[: size - 1]


def factory(learning_rate):
    return partial(torch.optim.SGD, lr=learning_rate)


def rates(step, steps, warm_up):
    return -1 if step == 5 else 1


class Strategy(AllReduce):
    pass


class Mean(LanguageModelling):
    def loss(self, model, batch):
        loss, tokens = super().loss(model, batch)
        return loss / tokens, tokens


class Model(Decoder):
    pass


class Nothing:
    pass
"""
SMALL = ["--context", "8", "--vocabulary", "300", "--layers", "1", "--width", "16", "--heads", "2"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return str(tmp_path / "mine.py")


def checked(*words: str):
    result = CliRunner().invoke(cli, ["check", *words, "--no-wires"])
    return result, result.output.splitlines()


KINDS = {
    "plain": "algorithm",
    "listed": "algorithm",
    "unnamed": "algorithm",
    "factory": "optimizer",
    "rates": "schedule",
    "Strategy": "strategy",
    "Mean": "task",
    "Model": "model",
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_name_in_a_file_stands_for_is_found_out(file, name):
    assert kind_of(f"{file}:{name}") == KINDS[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ring", "algorithm"),
        ("ps:async", "strategy"),
        ("documents", "task"),
        ("decoder", "model"),
        ("adam", "optimizer"),
        ("cosine", "schedule"),
        ("torch.optim:RMSprop", "optimizer"),
    ],
)
def test_what_a_registered_name_stands_for_is_found_out(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("number", "is of the type int, for which there is no kit"),
        ("Nothing", "is a class, for which there is no kit. There are kits for: algorithm"),
        ("nobody", "There is no 'nobody' in"),
    ],
)
def test_what_has_no_kit_is_refused(file, name, sentence):
    result, _ = checked(f"{file}:{name}")
    assert isinstance(result.exception, ConfigurationError)
    assert sentence in str(result.exception)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"Unknown name 'rign' \(did you mean 'ring'\?\)"):
        kind_of("rign")


def test_a_line_for_each_check_and_what_is_not_looked_at():
    result, lines = checked("cosine")
    assert result.exit_code == 0, result.exception
    assert lines[:4] == ["cosine: schedule, in this process", "  ✓ factors", "  ✓ function", "  ✓ moves"]
    assert lines[-1] == "  – not looked at: real ranks, as --no-wires says"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rates"], "  ✗ factors: At step 5 of 10, 0 of them warm-up, the factor is -1, but must be"),
        (["Mean", *SMALL], "  ✗ sum: The loss of 8 examples is "),
        (["half"], "  ✗ proof: 2 ranks: refuted: rank 0 misses the contribution of rank 1 in chunk 0"),
        (["factory", "--kind", "schedule"], "  ✗ factors: "),
    ],
)
@pytest.mark.usefixtures("own_cache")
def test_what_fails_is_said_and_ends_the_program(file, words, line):
    result, lines = checked(f"{file}:{words[0]}", *words[1:])
    assert any(said.startswith(line) for said in lines), lines
    assert isinstance(result.exception, BigBatchError)
    assert not isinstance(result.exception, ConfigurationError)
    assert "of its checks; it was not tried between real ranks" in str(result.exception)


@pytest.mark.parametrize("words", [["adam"], ["ps"], ["decoder", *SMALL], ["documents", *SMALL]])
@pytest.mark.usefixtures("own_cache")
def test_ours_pass(words):
    result, lines = checked(*words)
    assert result.exit_code == 0, lines


def test_a_strategy_that_needs_its_own_wires_says_that_it_was_not_simulated():
    result, lines = checked("allreduce")
    assert result.exit_code == 0
    assert lines[1].startswith("  – not looked at: 1 workers on simulated ranks: torch.distributed's all-reduce runs")


def test_marks_are_plain_where_the_output_cannot_show_them():
    result, _ = checked("cosine")
    assert result.output.translate(TWINS).splitlines()[1] == "  passed factors"


def test_every_kind_has_its_kit():
    from bigbatch.comm.registry import import_object

    assert all(callable(import_object(path)) for path in KITS.values())


@pytest.mark.slow
def test_real_ranks_follow_when_all_is_well(run: Run, file):
    outcome = run("bigbatch-exp", "check", f"{file}:Strategy", "-n", "2", deadline=100)
    assert outcome.status == 0, outcome.err
    assert "strategy, between 2 real ranks (MPITransport)" in outcome.out
    assert outcome.out.count("✓ plain loop") == 2


APART = '''
import os

def rates(step, steps, warm_up):
    """Other rates in every process."""
    return 1 + (os.environ.get("PMI_RANK", "0") == "1")
'''


def test_what_differs_between_processes_is_found_on_real_ranks(run: Run, tmp_path):
    (tmp_path / "apart.py").write_text(APART)
    outcome = run("bigbatch-exp", "check", "apart.py:rates", deadline=60)
    assert outcome.status == 1
    assert "✗ alike on all ranks: Rank 1 has other factors than rank 0" in outcome.out
    assert outcome.err.count("has failed 1 of its checks between real ranks") == 1
