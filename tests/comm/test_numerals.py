"""Numerals: one way in which numbers are read from text and from Python, with limits; the rest is refused."""

# ruff: noqa: RUF001 - what looks like other characters is what is tried here
import ctypes
import datetime
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.comm.errors import QUOTED, ConfigurationError, quoted
from bigbatch.comm.kinds import BYTES, TOKENS, Flag, Number, Several, Text, Whole, checked
from bigbatch.comm.numerals import numeral
from bigbatch.comm.simulation.computing import Computing, Stragglers
from bigbatch.comm.simulation.gpus import GPU
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster

NONE = ("", " ", "nan", "inf", "-inf", "1,5", "0,002", "1,50", "12,34,567", "1,000,00", ",5", "1,", "1_5", "1__000",
        "_1", "1,000_000", "0,123", "٣", "４", "²", "Ⅷ", "0x10", "0b1", "1e", "e5", "1e5.5", "1e9999999999", "--5",
        "1 000", "1\u202f000", "−1", "½", "1.2.3", "1'000", "\n1")  # fmt: skip


class Odd:
    """Somebody's number, which fails at whatever is asked of it."""

    def __index__(self):
        raise RuntimeError

    def __repr__(self):
        raise RuntimeError


LIKE_NUMBERS = (np.True_, torch.tensor(True), np.bytes_(b"3"), 3 + 0j, np.complex64(3), torch.tensor(3 + 0j),
                np.timedelta64(3, "s"), np.datetime64("2026"), np.array([3]), torch.tensor([3]), np.array([]),
                torch.tensor(3.0, device="meta"), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Odd(),
                ctypes.c_int(3), memoryview(b"3"), {3}, range(3), ...)  # fmt: skip


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_numeral_is_refused_by_every_kind(text):
    # A decimal comma that was dropped, humanfriendly 81; what float() takes besides numbers, click 3347.
    assert numeral(text) is None
    for kind in (Whole(), Number(), TOKENS, BYTES):
        with pytest.raises(ValueError, match=r"is (no|not a) "):
            kind.read(text)


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (Whole(), "1,000,000", 1_000_000),
        (Whole(), "1_000", 1_000),
        (Whole(), " 7 ", 7),
        (Whole(), "+7", 7),
        (Whole(), "007", 7),
        (Whole(), "1e3", 1000),
        (Whole(), "1.5e3", 1500),
        (Whole(), 1e3, 1000),
        (Whole(), np.int64(3), 3),
        (Whole(), np.float32(3), 3),
        (Whole(), np.array(3), 3),
        (Whole(), torch.tensor(3.0, requires_grad=True), 3),
        (Whole(), Decimal("3.0"), 3),
        (Whole(), Fraction(3), 3),
        (Number(), Fraction(1, 4), 0.25),
        (Number(), torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
        (Number(), np.longdouble(2.5), 2.5),
        (Flag(), np.True_, True),
        (Whole(), "9223372036854775807", 2**63 - 1),  # a float would make it one more
        (Number(), ".5", 0.5),
        (Number(), "1,500.25", 1500.25),
        (Number(), np.float32(2.5), 2.5),
        (Number(infinite=True), "inf", math.inf),
        (Number(infinite=True), math.inf, math.inf),
        (TOKENS, "1,000k", 1_000_000),
        (TOKENS, "1.3e9", 1_300_000_000),
        (TOKENS, "0.1M", 100_000),
        (BYTES, "0.1MB", 104_858),
        (BYTES, "1mb", 2**20),
        (BYTES, "1 MIB", 2**20),
        (TOKENS, "3K", 3000),
    ],
)
def test_a_numeral_is_read_exactly(kind, value, read):
    assert kind.read(value) == read
    assert type(kind.read(value)) is type(read)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Whole(most=1024), "1025", "at most 1,024"),
        (Whole(most=1024), "9" * 400, "at most 1,024"),
        (Whole(most=1024), np.uint64(2**63), "at most 1,024"),
        (Whole(most=1024), "1e20", "at most 1,024"),
        (Whole(most=1024), "ten", "no whole number; write one from 1 to 1,024"),
        (Whole(), "1.000", "no whole number"),  # a thousand to one half of the world, one to the other
        (Whole(), "1e-999999999", "no whole number"),
        (Whole(), 1.5, "no whole number"),
        (Whole(), math.nan, "no whole number"),
        (Whole(), b"3", "no whole number"),
        (Whole(), np.array([1, 2]), "no whole number"),
        (Number(), "1e400", r"at most 1e\+30"),
        (Number(), "-1e400", r"at least -1e\+30"),
        (Number(), 10**400, r"at most 1e\+30"),
        (Number(), datetime.date(2026, 1, 1), "no finite number"),
        (Number(), b"3", "no finite number"),
        (Number(), True, "no finite number"),
        # What float() and index() take for numbers: sktime 3627, numpy 9646.
        # What abs() and * of Decimal raise: isoduration 29.
        *((kind, value, "is no (whole|finite) number") for kind in (Whole(), Number()) for value in LIKE_NUMBERS),
        (Number(), "1e999999999", r"at most 1e\+30"),
        (Number(), "9" * 10**6, r"at most 1e\+30"),
        (TOKENS, "1e999999999M", "at most 1,000,000,000,000,000"),
        (BYTES, "9" * 10**6 + "GB", "at most 1,125,899,906,842,624"),
        (Number(infinite=True, least=0), -math.inf, "no finite number"),
        (Number(infinite=True), "nan", "no finite number"),
        (TOKENS, "1.000", "not a number of tokens"),
        (TOKENS, "1.5", "not a number of tokens"),
        (TOKENS, "0.0001k", "at least 1"),
        (TOKENS, "0", "at least 1"),
        (TOKENS, "-5k", "at least 1"),
        (TOKENS, "5KB", "not a number of tokens"),
        (BYTES, "1Mb", "not a number of bytes"),  # a megabit
        (BYTES, "256kB", "a KB has 1024 bytes"),  # 1,000 bytes, in the SI
        (BYTES, "1mB", "not a number of bytes"),
        (BYTES, "1e9GB", "at most 1,125,899,906,842,624"),
        (Several(BYTES), "4,096", "comma inside a number"),
        (Several(BYTES), "1,000KB", "comma inside a number"),
        (Several(Whole()), b"12", "no list"),
        (Several(Whole()), {1: 2}, "no list"),
        (Several(Whole()), [[1]], r"holds \[1\], which is no whole number"),
        (Text(), " ", "is empty"),
        (Text(), "a\0b", "NUL"),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_limit(kind, value, reason):
    with pytest.raises(ValueError, match=reason):
        kind.read(value)


def test_a_refused_value_is_quoted_on_one_line_and_cut_off():
    endless: list[object] = []
    endless.append(endless)
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for value in (Odd(), "9" * 10**6, 10**5000, nested, endless, np.arange(10**4), "a\nb", "\ud800"):
        text = quoted(value)
        assert len(text) <= QUOTED + 1
        assert "\n" not in text
        text.encode()  # whatever it is, it can be printed


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans(), st.binary(), st.lists(st.text())))
def test_whatever_is_given_is_read_within_the_limits_or_refused_in_one_sentence(value):
    for kind in (Whole(least=-5, most=10), Number(above=-2, most=3), TOKENS, Several(BYTES), Text()):
        read, refused = None, ""
        try:
            read = checked("It", kind, value)
        except ConfigurationError as error:
            refused = str(error)
        if refused:
            assert refused.startswith("It cannot be ")
            assert "\n" not in refused
            assert len(refused) < 400
            continue
        numbers = [one for one in (read if isinstance(read, tuple) else [read]) if not isinstance(one, str)]
        assert all(-5 <= number <= BYTES.most and math.isfinite(number) for number in numbers)


HOSTILE = (math.nan, math.inf, -math.inf, -1, 10**400, "x", "٣", "1,5", True, [1], b"3", datetime.date(2026, 1, 1))

CALLS = {
    "Cluster": Cluster,
    "Cluster's deadline": lambda value: Cluster(2, deadline=value),
    "Cluster's failures": lambda value: Cluster(2, failures={1: value}),
    "a rank that fails": lambda value: Cluster(2, failures={value if value.__hash__ else "x": 1.0}),
    "failures": lambda value: Cluster(2, failures=value),
    "α": lambda value: wire(value, 1e9),
    "γ": lambda value: Network("n", wire(0, 1), gamma=value),
    "oversubscription": lambda value: Network("n", wire(0, 1), oversubscription=value),
    "node_size": lambda value: Network("n", wire(0, 1), node_size=value),
    "exponential": lambda value: Stragglers(exponential=value),
    "lognormal": lambda value: Stragglers(lognormal=value),
    "slow": lambda value: Stragglers(slow={0: value}),
    "seconds per token": Computing,
    "flops": lambda value: Computing.from_flops(1.0, value),
    "utilisation": lambda value: Computing.from_flops(1.0, 1.0, value),
    "memory": lambda value: GPU("g", {"fp32": 1e12, "fp16": 1e12}, value, 1e9, "made up"),
    "an option": lambda value: STRATEGIES.load("ps").configured({"staleness": value}),
}


@pytest.mark.parametrize("name", CALLS)
def test_callers_in_python_get_the_same_checks(name):
    for value in HOSTILE:
        if value is True and name == "a rank that fails":
            continue  # a dictionary cannot tell it from 1
        with pytest.raises(ConfigurationError, match=r" cannot be "):
            CALLS[name](value)


@pytest.mark.parametrize("number", ["٣", "-1", "nan", "1e30", "x", "9" * 200])
def test_a_number_in_a_strategys_name_is_read_as_an_option_is(number):
    for rule in ("ssp", "backup"):
        with pytest.raises(ConfigurationError, match=r"There is no parameter server .* Write sync, async, ssp:S"):
            STRATEGIES.load(f"ps:{rule}:{number}")
    with pytest.raises(ConfigurationError, match="The strategy cannot be 3: that is no text"):
        STRATEGIES.load(3)
