from __future__ import annotations

import pytest

from model.data.families.wide_search import MAX_ITEMS, QUESTIONS, SUB_SEARCH, WIDE_SEARCH
from model.data.samples.sample import Sample
from model.rl.tools.search import search


def answered(sample: Sample) -> list[tuple[dict, str]]:
    """Every call with the content of the tool turn that answers it; ids count over the conversation."""
    found: list[tuple[dict, str]] = []
    waiting: list[tuple[str, dict]] = []
    for message in sample.messages:
        if message["role"] == "assistant":
            assert not waiting
            calls = message.get("tool_calls", [])
            waiting = [(f"functions.{c['name']}:{len(found) + n}", c) for n, c in enumerate(calls)]
        elif message["role"] == "tool":
            name, call = waiting.pop(0)
            assert message["tool_call_id"] == name
            found.append((call, message["content"]))
    assert not waiting
    return found


@pytest.mark.parametrize("split", ["train", "eval"])
def test_results_are_the_records_and_the_answer_is_the_results(split: str) -> None:
    for index in range(300):
        sample = WIDE_SEARCH.sample(0, split, index)  # type: ignore[arg-type]
        values = []
        for call, content in answered(sample):
            query = call["arguments"].get("query") or (call["name"] == "assign_task" and call["arguments"]["prompt"])
            if query:
                assert search(sample.environment["records"], query) == content
                values.append(content)
        assert values == [f"{name}:{value}" for name, value in sample.answer.items()] and 2 <= len(values) <= MAX_ITEMS
        assert sample.messages[-1]["content"] == "\n".join(values)
        items = [line.split(":", 1) for line in sample.messages[0]["content"].split("\n")[1:]]
        assert [number for number, _ in items] == [str(n + 1) for n in range(len(values))]
        assert [query.rsplit(" ", 1)[0] for _, query in items] == list(sample.answer)


def test_serial_searches_one_by_one_and_swarm_in_one_parallel_turn() -> None:
    samples = [WIDE_SEARCH.sample(0, "train", index) for index in range(600)]
    swarms = 0
    for sample in samples:
        replies = [message for message in sample.messages if message["role"] == "assistant"]
        turns = [[call["name"] for call in reply.get("tool_calls", [])] for reply in replies]
        count = len(sample.answer)
        if sample.environment["mode"] == "swarm":
            swarms += 1
            assert turns == [["create_subagent"], ["assign_task"] * count, []]
            calls = [call for call, _ in answered(sample)]
            assert {call["arguments"]["agent"] for call in calls[1:]} == {calls[0]["arguments"]["name"]}
        else:
            assert turns == [["search"]] * count + [[]]
    assert 0.43 < swarms / 600 < 0.57


def test_the_question_does_not_tell_the_mode() -> None:
    heads: dict[str, set[str]] = {"serial": set(), "swarm": set()}
    declared: dict[str, set[tuple[str, ...]]] = {}
    for index in range(2000):
        sample = WIDE_SEARCH.sample(0, "train", index)
        assert [message["role"] for message in sample.messages[:2]] == ["user", "assistant"]
        heads[sample.environment["mode"]].add(sample.messages[0]["content"].split("\n")[0])
        declared.setdefault(sample.environment["mode"], set()).add(tuple(sample.tools))
    everything = ("search", "create_subagent", "assign_task")
    assert declared == {"swarm": {everything}, "serial": {everything, ("search",)}}
    assert heads["serial"] == heads["swarm"] and len(heads["swarm"]) == len(QUESTIONS)


def test_a_sub_search_is_one_part_of_a_wide_search() -> None:
    for index in range(200):
        sample = SUB_SEARCH.sample(0, "eval", index)
        system, user, turn, result, final = sample.messages
        assert [call["arguments"] for call in turn["tool_calls"]] == [{"query": user["content"]}]
        assert search(sample.environment["records"], user["content"]) == result["content"] == final["content"]
        assert system["role"] == "system" and sample.answer == final["content"] and sample.tools == ["search"]
