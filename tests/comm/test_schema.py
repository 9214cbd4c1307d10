"""What a schema lets through, and how it names the place that it refuses."""

from contextlib import suppress
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import LONGEST_LINE, NO_NUMBER, parsed, read_lines
from bigbatch.comm.schema import Above, AtLeast, Entries, NameText, NumberedFrom, check


class Inner(TypedDict):
    kind: Literal["one", "two"]
    share: Annotated[float, AtLeast(0, 1)]


class Outer(TypedDict):
    name: NameText
    count: int
    inner: Annotated[list[Inner], Entries(most=1000)]
    rate: NotRequired[Annotated[float, Above(0)] | None]
    by_name: NotRequired[dict[str, bool]]
    by_number: NotRequired[Annotated[dict[str, bool], NumberedFrom(1)]]


GOOD: dict[str, Any] = {"name": "a", "count": 3, "inner": [{"kind": "one", "share": 1}]}


@pytest.mark.parametrize(
    "more", [{}, {"rate": None}, {"rate": 2}, {"by_name": {"x": True}}, {"later": {"versions": [1, None, "more"]}}]
)
def test_what_was_declared_is_let_through_and_more_than_that(more):
    content = {**GOOD, **more}
    assert check(content, Outer, "It") is content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "it is a list, and should be an object"),
        ({}, "name is missing"),
        ({**GOOD, "name": ""}, "name is no name of up to 1,000 characters without control characters"),
        *(
            ({**GOOD, "name": f"a{letter}"}, "name is no name of up to 1,000 characters without control characters")
            for letter in "\0\x9b\u2028\u202e\u2067"  # CVE-2021-42574: what follows is shown from right to left
        ),
        ({**GOOD, "count": 3.0}, "count is 3.0, and should be a whole number"),
        ({**GOOD, "count": True}, "count is true, and should be a whole number"),
        ({**GOOD, "inner": []}, "inner is empty"),
        ({**GOOD, "inner": GOOD["inner"] * 1001}, "inner has 1,001 entries, of which at most 1,000 are read"),
        ({**GOOD, "inner": [*GOOD["inner"], {"kind": "six"}]}, "inner[1].share is missing"),
        ({**GOOD, "inner": [{"kind": "six", "share": 1}]}, "inner[0].kind is the text 'six', none of one, two"),
        ({**GOOD, "inner": [{"kind": "one", "share": 1.5}]}, "inner[0].share is 1.5, which is too large"),
        ({**GOOD, "inner": [{"kind": "one", "share": -1}]}, "inner[0].share is -1, which is less than 0"),
        ({**GOOD, "rate": 0}, "rate is 0, not above 0"),
        ({**GOOD, "rate": NO_NUMBER}, "rate is no number that can be computed with"),
        ({**GOOD, "by_name": {"x\ny": 1}}, "by_name.'x\\ny' is 1, and should be true or false"),
        *(
            (
                {**GOOD, "by_number": {"7": True, name: True}},
                f"by_number has the name {shown}, and should have whole numbers of at least 1",
            )
            for name, shown in (("many", "many"), ("0", "0"), ("\u0663", "\u0663"), ("9" * 5000, repr("9" * 20)))
        ),
        ({**GOOD, "later": [[{"a": NO_NUMBER}]]}, "later[0][0].a is no number that can be computed with"),
    ],
)  # fmt: skip
def test_the_first_wrong_place_is_named(content, sentence):
    with pytest.raises(ConfigurationError) as refused:
        check(content, Outer, "The summary of here")
    assert str(refused.value) == f"The summary of here is damaged: {sentence}."


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(JSON)
@settings(deadline=None)
def test_anything_is_let_through_or_refused_in_a_sentence(content):
    for schema in (Outer, dict[str, Any], list[Inner], Any):
        with suppress(ConfigurationError):
            assert check(content, schema, "It") is content


@pytest.mark.parametrize("text", ["9" * 5000, "1e999", "-1e999", "NaN", "-Infinity", "9" * 20])
def test_what_no_library_can_compute_with_is_no_number(text):
    assert parsed(f"[{text}]", "It")[0] != parsed(f"[{text}]", "It")[0]


def test_a_line_without_an_end_is_not_read_for_ever(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * (2 * LONGEST_LINE))
    with pytest.raises(ConfigurationError, match="line 2 is longer than"):
        read_lines(path, "It", 2**30)
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    assert read_lines(path, "It", 2**30) == ([{"a": 1}], True)
    path.write_bytes(b"")
    assert read_lines(path, "It", 2**30) == ([], False)
