"""Dialogues: the last answer against what the user's turns and the records say, and who says what in which order."""

from __future__ import annotations

import re

import pytest

from model.data.families.dialogue import DIALOGUE, NUMBER_NAMES
from model.data.families.dialogue.kinds import KINDS, NOT_FOUND, WHICH_BOTH, WHICH_KEY, WHICH_NAME, WHICH_ROWS
from model.data.families.family import SPLITS
from model.data.samples.sample import Sample, Split
from model.rl.tools.search import search

KEYS = (
    "capital",
    "continent",
    "currency",
    "phone",
    "country",
    "symbol",
    "period",
    "group",
    "area",
    *NUMBER_NAMES,
    "population",
)
ASKS_BACK = {"which_attribute": WHICH_KEY, "which_name": WHICH_NAME, "which_both": WHICH_BOTH, "which_rows": WHICH_ROWS}


def some(split: Split, rounds: int) -> list[Sample]:
    return [DIALOGUE.sample(0, split, index) for index in range(rounds * len(KINDS))]


def kind_of(sample: Sample) -> str:
    return sample.key.split("-")[1]


def solve(sample: Sample) -> str:
    """The answer to the user's last turn, from what the user said and the records alone."""
    records, kind = sample.environment["records"], kind_of(sample)
    said = [turn["content"] for turn in sample.messages if turn["role"] == "user"]
    names = re.findall('"(.*?)"', "\n".join(said))
    words = re.sub('".*?"', "", "\n".join(said))
    keys = re.findall(rf"\b({'|'.join(KEYS)})\b", words)
    if kind == "which_rows":
        rows = [line.split(":") for line in said[0].split("\n") if re.match(r"\d:", line)]
        low, high = (int(number) for number in re.findall(r"\d+", said[1]))
        values = [int(value) for number, _, value in rows if low <= int(number) <= high]
        assert len(values) >= 2
        return str(sum(values) if "Sum" in said[0] else max(values) if "Largest" in said[0] else min(values))
    found = [search(records, f"{name} {keys[-1]}").split(":")[-1] for name in names]
    if kind in ("total", "compare"):
        return str(abs(int(found[0]) - int(found[1])))
    if kind == "unit":
        return str(int(int(found[0]) / int(re.findall(r"\d+", said[1])[0])))
    return NOT_FOUND if found[-1] == "no result" else found[-1]


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_answer_follows_from_what_the_user_said(split: Split) -> None:
    for sample in some(split, 40):
        assert solve(sample) == sample.answer == sample.messages[-1]["content"], sample.key
        assert len(sample.later_questions) == 1 + (len([t for t in sample.messages if t["role"] == "user"]) - 2)


@pytest.mark.parametrize("split", SPLITS)
def test_results_are_those_of_the_search_and_calls_are_counted(split: Split) -> None:
    for sample in some(split, 20):
        calls, waiting = 0, []
        for turn in sample.messages:
            if turn["role"] == "tool":
                call = waiting.pop(0)
                assert turn["tool_call_id"] == f"functions.{call['name']}:{calls}"
                calls += 1
                if call["name"] == "search":
                    assert search(sample.environment["records"], call["arguments"]["query"]) == turn["content"]
            else:
                assert not waiting
                waiting = list(turn.get("tool_calls", []))
        assert 1 <= calls <= 4 and not waiting


def test_the_assistant_asks_back_for_what_is_missing() -> None:
    for sample in some("train", 20):
        first = sample.messages[1]
        if kind_of(sample) in ASKS_BACK:
            assert first == {"role": "assistant", "content": ASKS_BACK[kind_of(sample)]}
        else:
            assert "tool_calls" in first or first["content"] == WHICH_KEY


def test_some_dialogues_end_without_a_result_and_some_go_on() -> None:
    missing = [sample for sample in some("train", 100) if kind_of(sample) == "not_found"]
    ended = [sample for sample in missing if sample.answer == NOT_FOUND]
    assert 0.3 < len(ended) / len(missing) < 0.7
    assert all({"role": "assistant", "content": NOT_FOUND} in sample.messages for sample in missing)


def test_entities_and_the_last_wordings_are_held_out() -> None:
    names = {
        split: {name for sample in some(split, 60) for name in re.findall('"(.*?)"', str([
            turn["content"] for turn in sample.messages if turn["role"] == "user"]))}
        for split in SPLITS
    }  # fmt: skip
    assert len(names["eval"]) > 50 and not names["train"] & names["eval"]
    asked = {split: {sample.messages[0]["content"].split('"')[0] for sample in some(split, 60)} for split in SPLITS}
    assert {"I have a question.", "Look something up for me."} <= asked["train"]
    for held_out in ("Please help me find something.", "Find ", "Larger population: "):
        assert held_out in asked["eval"] and held_out not in asked["train"]
