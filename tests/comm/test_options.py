"""Options: every kind of value read, written and refused; nested options as one flat set of names."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import BYTES, TOKENS, File, Flag, Name, Number, Several, Text, Whole
from bigbatch.comm.options import Options, option, options_of


@dataclass(frozen=True)
class Inner(Options):
    title = "Inside"

    tokens: int = option(500_000, TOKENS, "Tokens.")
    clip: float | None = option(None, Number(above=0), "Clip.", missing="none")
    overlap: bool = option(True, Flag(), "Overlap.")
    trace: bool = option(False, Flag(), "Trace.")


@dataclass(frozen=True)
class Outer(Options):
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = option(("a", "b"), Several(Name(lambda: ["a", "b", "c"])), "Names.")
    out: Path | None = option(None, File(), "Out.")


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (Text(), "x", "x"),
        (Name(lambda: ["a"]), "a", "a"),
        (Name(lambda: ["a"], "FILE.py:Name"), "mine.py:B", "mine.py:B"),
        (Whole(), "7", 7),
        (Whole(least=0), 0, 0),
        (Number(), "1e-3", 1e-3),
        (Number(above=0), 2, 2.0),
        (Flag(), False, False),
        (File(), "a/b", Path("a/b")),
        (TOKENS, "0.3M", 300_000),
        (TOKENS, "2_000", 2000),
        (TOKENS, "1,300,000", 1_300_000),
        (BYTES, "256KB", 262_144),
        (BYTES, 12, 12),
        (Several(BYTES), "4KB,1MB,4KB", (4096, 1 << 20)),
        (Several(Whole(), ascending=True), [3, 1, 2, 1], (1, 2, 3)),
    ],
)
def test_a_value_is_read_and_what_was_written_is_read_back(kind, value, read):
    assert kind.read(value) == read
    assert type(kind.read(value)) is type(read)
    assert kind.read(kind.write(read)) == read
    assert isinstance(kind.show(read), str)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Text(), 3, "no text"),
        (Name(lambda: ["sync", "async"]), "snyc", "did you mean 'sync'"),
        (Whole(), 0, "at least 1"),
        (Whole(), "1.5", "no whole number"),
        (Whole(), True, "no whole number"),
        (Whole(), 2**64, "at most"),
        (Number(), math.nan, "no finite number"),
        (Number(), "inf", "no finite number"),
        (Number(above=0), 0.0, "above 0"),
        (Number(most=1), 2, "at most 1"),
        (Flag(), "no", "neither true nor false"),
        (Flag(), 1, "neither true nor false"),
        (File(), "", "no path"),
        (TOKENS, "1e30", "at most 1,000,000,000,000,000"),
        (TOKENS, True, "not a number of tokens"),
        (TOKENS, "0,3M", "not a number of tokens"),
        (TOKENS, "3,00", "not a number of tokens"),
        (TOKENS, "five", "not a number of tokens"),
        (BYTES, "-1", "at least 1"),
        (Several(Whole()), "1,", "nothing between two commas"),
        (Several(BYTES), "4KB,5XB", "holds '5XB', which is not a number of bytes"),
        (Several(BYTES), "", "names nothing"),
        (Several(BYTES), 7, "no list"),
    ],
)
def test_what_is_no_value_is_refused_with_the_reason(kind, value, reason):
    with pytest.raises(ValueError, match=reason):
        kind.read(value)


def test_nested_options_are_one_set_of_names():
    outer = Outer.of({"tokens": "200k", "names": "c", "overlap": False})
    assert outer.inner.tokens == 200_000
    assert outer.flat() == {
        "tokens": 200_000,
        "clip": None,
        "overlap": False,
        "trace": False,
        "names": ("c",),
        "out": None,
    }
    assert outer.written()["names"] == "c"
    assert Outer.of(outer.written()) == outer
    assert outer.words() == ["--names", "c", "--tokens", "200000", "--no-overlap"]
    assert [one.group for one in options_of(Outer)] == ["", "", "Inside", "Inside", "Inside", "Inside"]
    assert Outer().words() == []


def test_a_value_is_checked_whoever_makes_the_object():
    with pytest.raises(ConfigurationError, match="--clip cannot be nan: that is no finite number"):
        Inner(clip=math.nan)
    with pytest.raises(ConfigurationError, match="--tokens cannot be 'x'"):
        Outer.of({"tokens": "x"})
    with pytest.raises(ConfigurationError, match=r"has no option 'token' \(did you mean 'tokens'\?\)"):
        Outer.of({"token": 3})


def test_an_object_offers_its_own_values_as_defaults():
    offered = {one.name: one for one in Outer.of({"clip": 1, "trace": True}).offered("Mine")}
    assert (offered["clip"].default, offered["trace"].default, offered["names"].default) == (1.0, True, ("a", "b"))
    assert (offered["clip"].group, offered["names"].group) == ("Inside", "Mine")
    assert BYTES.show(25 * 2**20) == "25MB"
    assert TOKENS.show(500_000) == "500k"
    assert TOKENS.show(1234) == "1234"
