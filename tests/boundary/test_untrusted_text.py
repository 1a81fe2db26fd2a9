from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.boundary.untrusted_text import read_json, well_formed

HALVES = st.text(st.characters(categories=("Cs", "Ll", "So")), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | HALVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ud83d", "\ufffd"),
        ("a\ude00b\ud83d", "a\ufffdb\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("naïve 日本 \x00 \uffff 😀", "naïve 日本 \x00 \uffff 😀"),
    ],
)
def test_half_a_character_becomes_the_replacement_character(text: str, expected: str) -> None:
    assert well_formed(text) == expected


@given(HALVES)
def test_every_string_can_be_written_afterwards(text: str) -> None:
    written = well_formed(text)
    written.encode()
    assert well_formed(written) == written


@given(VALUES)
def test_json_is_read_with_every_string_well_formed(value: Any) -> None:
    def mended(value: Any) -> Any:
        if isinstance(value, str):
            return well_formed(value)
        if isinstance(value, list):
            return [mended(item) for item in value]
        return {key: mended(item) for key, item in value.items()} if isinstance(value, dict) else value

    assert read_json(json.dumps(value)) == mended(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting"),
        ('{"a": NaN}', "a is not a finite number"),
        ('{"a": [1, [-Infinity]]}', "a is not a finite number"),
        ('{"a": {"b": 1e999}}', "b is not a finite number"),
        ("[NaN]", "not finite"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        (r'{"\ud83d": 1, "\ud83e": 2}', "twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        ("\ud83d", "Expecting"),
    ],
)
def test_what_is_more_than_json_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        read_json(text)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_numbers_keep_their_kind() -> None:
    assert read_json('{"a": 12, "b": 0.5, "c": true}') == {"a": 12, "b": 0.5, "c": True}
    assert math.isclose(read_json("1e308"), 1e308)
