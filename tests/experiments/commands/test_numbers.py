"""Numbers on command lines, in configuration files and from callers in Python: every option, found by walking."""

# ruff: noqa: RUF001 - what looks like other characters is what is tried here
import array
import contextlib
import math
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import Count, Flag, Number, Several, Whole
from bigbatch.comm.transports.launch import Launch, Launcher
from bigbatch.experiments.commands.main import cli, run_program
from bigbatch.experiments.commands.options import Flagged, Value, read_entries
from bigbatch.experiments.planning.settings import Counts
from bigbatch.experiments.training import assemble
from bigbatch.experiments.training.assemble import resolve_device, use_threads
from bigbatch.tasks.settings import TokensOrFolder

TEXTS = ("nan", "NaN", "inf", "-inf", "Infinity", "0", "-1", "-0.5", "1e30", "1e-320", "1e400", "18446744073709551616",
         "9" * 400, "", " ", "0,5", "0,002M", "1,5k", "1.000", "1__0", "0x10", "٣", "４", "½", "--", "1 2",
         "1,,2", "5..2", "..", "2/1", "0/0", "tcp://127.0.0.1:99999")  # fmt: skip

LITERALS = ("true", "1", "-1", "0.5", "nan", "inf", "-inf", "9" * 400, "0x" + "f" * 5000, '""', '" "', '"no"', '"nan"',
            '"٣"', '"0,5"', '"a\\u0000b"', "2026-01-01", "07:32:00", "1979-05-27T07:32:00Z", "{}", "{ a = 1 }", "[]",
            "[1]", "[true]", "[[1], [2]]", "[{ a = 1 }]", '["ring", 1]')  # fmt: skip


def commands(group: click.Group = cli) -> Iterator[tuple[str, click.Command]]:
    """Every command by the words that call it, subcommands included."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())


def options() -> Iterator[tuple[str, click.Context, click.Option]]:
    """Every option, with the words that give it and the context of its command."""
    for name, command in commands():
        context = click.Context(command)
        yield from ((f"{name} {one.opts[-1]}", context, one) for one in command.params if isinstance(one, click.Option))


def valued() -> Iterator[tuple[str, click.Context, click.Option]]:
    """Every option that takes a value; of flags, click sees to it that they take none."""
    return ((name, context, one) for name, context, one in options() if not one.is_flag)


def cast(context: click.Context, option: click.Option, text: str) -> object:
    """Reads an option's text as its command does, and starts nothing."""
    value = option.type_cast_value(context, (text,) if option.multiple else text)
    return value[0] if option.multiple else value


def is_legal(kind: object, value: object) -> bool:
    if isinstance(kind, Several):
        return all(is_legal(kind.one, part) for part in value)
    if isinstance(kind, TokensOrFolder) and isinstance(value, Path):
        return True
    if isinstance(kind, Whole | Count):
        return type(value) is int and value <= kind.most
    if isinstance(kind, Number):
        return type(value) is float and math.isfinite(value)
    return value is not None


def test_every_option_of_every_command_reads_its_value_by_a_kind():
    """The walk sees them all, and none has a parser of its own."""
    found = {name: one.type for name, _, one in valued()}
    for name in ("ring --clip", "ps serve --bind", "ps worker --deadline", "plan --price", "bench --bytes"):
        assert name in found
    assert len(found) > 500
    assert not [name for name, kind in found.items() if not isinstance(kind, Value)]


def test_counts_are_whole_numbers_or_several_of_them():
    counts = Counts("workers", 64)
    for value, read in (
        ("8..64", (8, 16, 32, 64)),
        (np.int64(3), (3,)),
        (array.array("i", [3, 2]), (2, 3)),
        ([4.0], (4,)),
    ):
        assert counts.read(value) == read
    for value in (
        np.datetime64("2020"),
        Path("3"),
        b"3",
        memoryview(b"3"),
        np.array([8, 16]),
        True,
        "1e999999999",
        "3\t",
    ):
        with pytest.raises(ValueError, match="is no number of workers"):
            counts.read(value)


def test_every_option_takes_a_legal_value_or_refuses_in_one_sentence():
    # NaN passes a range check, click 3347; a decimal comma is dropped, humanfriendly 81.
    taken = 0
    for name, context, option in valued():
        for text in TEXTS:
            value, refused = None, ""
            try:
                value = cast(context, option, text)
            except click.BadParameter as error:
                refused = error.format_message()
            if refused:
                assert refused.startswith("Invalid value for '"), name
                assert f"{option.opts[-1]}': " in refused, name
                assert "\n" not in refused, name
                assert len(refused) < 600, name
                continue
            taken += 1
            assert is_legal(option.type.kind, value), f"{name} {text!r}: {value!r}"
    assert taken > 100


def test_no_option_for_a_number_takes_what_is_none():
    """Options of one number take no word, nothing, no decimal comma, no other script and no infinity."""
    wrong = ("nan", "inf", "-inf", "", " ", "0,5", "0,002M", "٣", "４", "0x10", "1__0", "9" * 400, "1e400")
    numbers = [one for one in valued() if isinstance(one[2].type.kind, Whole | Number | Count)]
    assert len(numbers) > 300
    for name, context, option in numbers:
        for text in wrong:
            value = None
            with contextlib.suppress(click.BadParameter):
                value = cast(context, option, text)
            assert value is None, f"{name} {text!r}: {value!r}"


def test_every_key_of_every_configuration_takes_its_kind_of_value_or_is_refused_by_name():
    """`quiet = 1`, a date, a table, a list and "no" raised a TypeError or an AttributeError, or were taken."""
    path, entries = Path("some.toml"), [tomllib.loads(f"x = {literal}")["x"] for literal in LITERALS]
    configured = [command for _, command in commands() if any(one.name == "config" for one in command.params)]
    assert len(configured) > 10
    for command in configured:
        for option in (one.made_from for one in command.params if isinstance(one, Flagged)):
            key = option.flag[2:]
            for value in entries:
                read, refused = {}, ""
                try:
                    read = read_entries(command, path, {key: value})
                except ConfigurationError as error:
                    refused = str(error)
                if refused:
                    assert refused.startswith(f"The configuration some.toml: {key} cannot be ")
                    assert "\n" not in refused
                    assert len(refused) < 700
                    continue
                assert read.keys() == {option.name}
                assert is_legal(option.kind, read[option.name]), f"{key} = {value!r}: {read}"
                assert not isinstance(option.kind, Flag) or value is True


ROWS = {
    "ring --clip nan": "'--clip': 'nan' is no finite number",
    "ring --learning-rate inf": "'--learning-rate': 'inf' is no finite number",
    "ps worker --deadline nan": "'--deadline': 'nan' is no finite number",
    "plan --target 3.3 --price nan": "'--price': 'nan' is no finite number",
    "ring --tokens 0,002M": "'--tokens': '0,002M' is not a number of tokens; write 300000, 300k or 0.3M",
    "ring --tokens 1,5k": "'--tokens': '1,5k' is not a number of tokens",
    "ring --tokens 1e30": "'--tokens': '1e30' is out of range; it must be at most 1,000,000,000,000,000",
    "ring --seed 18446744073709551616": "is out of range; it must be at most 9,223,372,036,854,775,807",
    "ring --vocabulary 1e20": "'--vocabulary': '1e20' is out of range; it must be at most 1,048,576",
    "ring --threads 100000": "'--threads': '100000' is out of range; it must be at most 1,024",
    "ring --deadline 1e30": "'--deadline': '1e30' is out of range; it must be at most 1e+06",
    "ring --simulate 4 --straggler lognormal:1000": "'1000' is out of range; it must be at most 10",
    "simulate ring --straggler slow:1:nan": "'nan' is no finite number",
    "simulate ring --workers ٣": "holds '٣', which is no number of workers",
    "simulate ring --workers 8..1e30": "holds '8..1e30', which is no number of workers",
    "ps serve --bind tcp://127.0.0.1:99999": "'tcp://127.0.0.1:99999' has no port; write one from 1 to 65,535",
    "ps serve --bind tcp://127.0.0.1": "is no address; write tcp://HOST:PORT",
    "ps serve --part ٣/٣": "'٣/٣' is no part",
    "ps status --server tcp://127.0.0.1:99999": "has no port",
    "ps worker --server tcp://127.0.0.1": "is no address",
    "bench --bytes 4,096": "has a comma inside a number",
    "bench --bytes 1125899906842624": "is more than this machine's memory of",
    "calibrate --memory 1048576GB": "is more than this machine's memory of",
    "ring --width 65536 --layers 10000": "take fewer --layers or a smaller --width",
    "simulate ring --parameters 1e14": "'1e14' is out of range; it must be at most 10,000,000,000,000",
    "timeline run --updates ٣": "'٣' is no range",
    f"ring --simulate 4 --network {'9' * 400}.toml": "is too long; a name has at most 255 bytes",
    f"{'9' * 400}.py:X": "that is too long; a name has at most 255 bytes",
    "ring --config quiet.toml": "The configuration quiet.toml: quiet cannot be 1: that is neither true nor false.",
    "ring --config date.toml": "tokens cannot be datetime.date(2026, 1, 1): that is not a number of tokens",
    "ring --config table.toml": "model cannot be {'a': 1}: that is no text.",
    "ring --config twice.toml": "names the option bucket-size twice: leave one of them out.",
    "ring --config unknown.toml": "has an unknown option 'bucket_sise' (did you mean 'bucket-size'?). Known: ",
    "ring --config large.toml": "seed cannot be so large a value of type int: that is out of range; it must be at most",
    "ring --simulate 4 --network source.toml": "The network source.toml: source cannot be 7: that is no text.",
}

FILES = {
    "quiet": "quiet = 1",
    "date": "tokens = 2026-01-01",
    "table": "[model]\na = 1",
    "twice": 'bucket-size = "1MB"\nbucket_size = "1MB"',
    "unknown": 'bucket_sise = "1MB"',
    "large": f"seed = 0x{'f' * 5000}",
    "source": "alpha = 1\nbandwidth = 1\nsource = 7",
}


@pytest.mark.parametrize("words", ROWS)
def test_the_rows_of_the_list_of_faults_are_refused_in_one_sentence(words, tmp_path, monkeypatch, capsys):
    for name, content in FILES.items():
        (tmp_path / f"{name}.toml").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", *words.split()])
    assert run_program() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert ROWS[words] in " ".join(said.err.split())
    sentences = [line for line in said.err.splitlines() if line.startswith(("Error: ", "bigbatch-exp: "))]
    assert len(sentences) == 1
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / f"{name}.toml" for name in FILES)


def test_more_threads_than_cores_are_told_of_with_the_largest_number_that_makes_sense(monkeypatch):
    """No number that torch takes is refused: a configuration may have been written for a larger machine."""
    told, used = [], []
    monkeypatch.setattr(assemble, "usable_cores", lambda: 2)
    monkeypatch.setattr(assemble.torch, "set_num_threads", used.append)
    for threads in (1, 2, 1000):
        use_threads(threads, told.append)
    assert used == [1, 2, 1000]
    assert len(told) == 1
    assert "--threads 2 is the largest number that makes sense here" in told[0]


@pytest.mark.parametrize(
    "name", ["cpu:7", "cpu:0", "cuda:99999999999999999999", "cuda:-1", "cuda:٣", "cuda:1e3", "tpu"]
)
def test_a_device_has_a_number_only_where_there_can_be_several(name):
    with pytest.raises(ConfigurationError, match=f"Unknown device '{name}'. Use auto, cpu, cuda or cuda:N"):
        resolve_device(name, Launch(Launcher.NONE))


def test_a_configuration_with_a_byte_order_mark_is_read(tmp_path):
    # tomli 304
    (tmp_path / "some.toml").write_bytes(b"\xef\xbb\xbftokens = '300k'\r\nclip = 1\r\nquiet = true\r\n")
    command = dict(commands())["ring"]
    words = ["--config", str(tmp_path / "some.toml"), "--seed", "7"]
    params = command.make_context("ring", words).params
    assert (params["tokens"], params["clip"], params["quiet"], params["seed"]) == (300_000, 1.0, True, 7)


WRONG = (math.nan, math.inf, -1, 10**400, "x", "٣", "0,5", [], {}, b"3", 1e40)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(value)[:20])
def test_callers_in_python_get_the_checks_of_the_command_line(value):
    for call in (
        lambda: bigbatch.run("ring", learning_rate=value, simulate=2),
        lambda: bigbatch.run("ring", seed=value, simulate=2),
        lambda: bigbatch.run("ring", simulate=value),
        lambda: bigbatch.compare("ring", "ps", tokens=value, simulate=2),
        lambda: bigbatch.simulate("ring", workers=2, bytes=value),
        lambda: bigbatch.simulate("ring", workers=value),
        lambda: bigbatch.simulate("ring", straggler=f"slow:1:{value!r}"),
        lambda: bigbatch.Settings.of({"threads": value}),
        lambda: bigbatch.Cluster(value),
    ):
        with pytest.raises(ConfigurationError) as refused:
            call()
        assert " cannot be " in str(refused.value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 600


@pytest.mark.parametrize("value", [3, math.nan, None, [1], True])
def test_what_is_no_name_and_no_folder_is_refused_in_python(value):
    for call in (lambda: bigbatch.run(value), lambda: bigbatch.simulate(value), lambda: bigbatch.compare(value)):
        with pytest.raises(ConfigurationError):
            call()
    if value is not None:
        with pytest.raises(ConfigurationError, match=r"out cannot be .*: that is no path"):
            bigbatch.run("ring", simulate=2, out=value)
