"""The incremental reader against the whole-turn parser, and what a stream must not show too early."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from components.serve.turn_reader import Delta, TurnReader
from model.codec.chat import parse_assistant
from tests.components.serve.turns import content, read_turn, spoken
from tests.tiny_folders import tiny_tokenizer

T = tiny_tokenizer()


def call(name: str, arguments: str) -> list[int]:
    return spoken("<|tool_call_begin|>", name, "<|tool_call_argument_begin|>", arguments, "<|tool_call_end|>")


def section(*calls: list[int]) -> list[int]:
    inner = [token for one in calls for token in one]
    return [*spoken("<|tool_calls_section_begin|>"), *inner, *spoken("<|tool_calls_section_end|>")]


def reasoning(deltas: Sequence[Delta]) -> str:
    return "".join(delta.reasoning for delta in deltas)


@pytest.mark.parametrize("seed", range(30))
def test_any_text_is_what_the_tokenizer_decodes_whole(seed: int):
    ids = random.Random(seed).choices(range(T.ranks), k=60)  # with bytes that are no UTF-8
    assert content(read_turn([*ids, T.im_end_id])) == parse_assistant([*ids, T.im_end_id], T).content == T.decode(ids)


def test_a_character_of_several_tokens_comes_with_its_last_one():
    reader = TurnReader(T, False, False, 0)
    ids = T.encode("é🙂")
    assert len(ids) > 2
    shown = ["".join(d.content for d in reader.feed(token)) for token in ids]
    assert "".join(shown) == "é🙂" and "\ufffd" not in "".join(shown) and shown[0] == ""


def test_reasoning_calls_and_content_are_told_apart():
    ids = spoken("hm", "</think>", "look", *()) + section(
        call("functions.search:0", '{"query": "lima"}'), call("functions.ipython:1", '{"code": "1"}')
    )
    deltas = read_turn([*ids, T.im_end_id], thinking=True)
    assert (reasoning(deltas), content(deltas)) == ("hm", "look")
    assert [delta.call for delta in deltas if delta.call] == parse_assistant([*ids, T.im_end_id], T).tool_calls


def test_reasoning_that_was_cut_off_is_no_answer():
    deltas = read_turn(spoken("hm"), thinking=True)
    assert (reasoning(deltas), content(deltas)) == ("hm", "")


def test_a_policy_may_begin_to_think_though_it_was_not_asked():
    deltas = read_turn(spoken("<think>", "hm", "</think>", "yes"))
    assert (reasoning(deltas), content(deltas)) == ("hm", "yes")


def test_call_ids_are_counted_over_the_conversation_whatever_the_policy_wrote():
    ids = section(call("functions.search:7", "{}"), call("functions.search:7", "{}"))
    assert [delta.call.id for delta in read_turn(ids, calls=3) if delta.call] == [
        "functions.search:3",
        "functions.search:4",
    ]


@pytest.mark.parametrize("broken", [
    section(call("functions.search:0", "{oops")),
    section(call("search", "{}")),
    section(call("functions.search:0", '{"a": NaN}')),
    section(call("functions.search:0", '{"a": [1e999]}')),
    section(call("functions.search:0", '{"a": ' + "1" * 4400 + "}")),
    section(call("functions.search:0", '{"a": ' + "[" * 250 + "]" * 250 + "}")),
    spoken("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.search:0"),  # cut off
    spoken("<|tool_calls_section_begin|>", "no call", "<|tool_calls_section_end|>"),
])  # fmt: skip
def test_a_call_that_cannot_be_read_is_shown_as_it_was_written(broken: list[int]):
    deltas = read_turn([*spoken("so "), *broken])
    assert not any(delta.call for delta in deltas)
    assert content(deltas) == "so " + T.decode(broken)


def test_without_tools_a_call_is_text():
    ids = section(call("functions.search:0", "{}"))
    assert content(read_turn(ids, offers_tools=False)) == T.decode(ids)
    assert not any(delta.call for delta in read_turn(ids, offers_tools=False))


def test_a_whole_call_before_a_broken_one_stays():
    deltas = read_turn(section(call("functions.search:0", "{}"), call("functions.search:1", "{")))
    assert [delta.call.name for delta in deltas if delta.call] == ["search"]
    assert "functions.search:1" in content(deltas)


@pytest.mark.parametrize(("text", "stops", "shown"), [
    ("one two three", ["two"], "one "),
    ("one two three", ["three", "two"], "one "),
    ("abababc", ["ababc"], "ab"),
    ("one tw", ["two"], "one tw"),
    ("one", ["x"], "one"),
])  # fmt: skip
def test_a_stop_text_ends_the_content_before_it_and_is_never_shown_in_part(text, stops, shown):
    ids = [token for char in text for token in T.encode(char)]
    reader = TurnReader(T, False, False, 0, stops)
    so_far = ""
    for token in ids:
        so_far += content(list(reader.feed(token)))
        assert shown.startswith(so_far)
    assert so_far + content(list(reader.finish())) == shown
    assert reader.stopped == any(stop in text for stop in stops)


def test_a_stop_text_does_not_act_on_reasoning():
    deltas = read_turn(spoken("two", "</think>", "one"), thinking=True, stops=["two"])
    assert (reasoning(deltas), content(deltas)) == ("two", "one")
