from __future__ import annotations

import time
from contextlib import suppress

import pytest

from model.swarm.chat.endpoint import PICTURE_TOKENS, tokens_of
from model.swarm.video.answers import (
    MAX_EVENTS,
    MAX_KEYS,
    MAX_TEXT,
    Chapter,
    Event,
    Unreadable,
    clock,
    read_events,
    read_merged,
)
from model.swarm.video.decoding import Frame
from model.swarm.video.prompts import merging_task, part_messages

GOAL = Event(75.0, 4, "a goal")


def test_times_are_written_as_people_read_them() -> None:
    assert [clock(0), clock(75.99), clock(3675)] == ["00:00", "01:15", "1:01:15"]
    assert clock(75.96, tenths=True) == "01:15.9"


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("01:15 | 4 | a goal", GOAL),
        ("Here you are:\n\n- [01:15] | 4 | a goal", GOAL),
        ("1. **01:15** | **importance 4** | a goal", GOAL),
        ("| 01:15 | 4 | a goal |", GOAL),
        ("0:01:15.0-0:01:20 | 4/5 | a goal", GOAL),
        ("75 | 4 | a goal", GOAL),
        ("75.0 | 4 | a goal", GOAL),
        ("1. 75.0 | 4 | a goal", GOAL),
        ("1)01:15 | 4 | a goal", GOAL),
        ("01:15 - a goal", Event(75.0, 3, "a goal")),
        ("01:15: a goal", Event(75.0, 3, "a goal")),
        ("01:15 | high | a goal | by number 9", Event(75.0, 5, "a goal | by number 9")),
        ("01:15 | 99 | a goal", Event(75.0, 5, "a goal")),
        ('{"time": "01:15", "importance": 4, "event": "a goal"}', GOAL),
        ('{"time": 75, "importance": "4", "text": "a goal"},\nand so on', GOAL),
        ('```json\n[{"time": "1:15", "importance": 4.0, "description": "a goal"}]\n```', GOAL),
        ('{"events": [{"t": "01:15", "importance": 4, "what": "a goal"}]}', GOAL),
        ("00:10 | 4 | a goal", Event(60.0, 4, "a goal", exact=False)),
        ("99:99:99 | 4 | a goal", Event(120.0, 4, "a goal", exact=False)),
        ("01:15 | 4 | a\u202e goal\x1b[2J", Event(75.0, 4, "a\ufffd goal\ufffd[2J")),
    ],
)
def test_an_event_is_read_from_many_forms(text: str, event: Event) -> None:
    assert read_events(text, 60, 120)[0] == [event]


def test_key_frames_are_named_in_a_line_or_in_json() -> None:
    assert read_events("01:15 | 4 | a goal\nKEY: 01:15, 1:20.5 and 01:22", 60, 120)[1] == [75, 80.5, 82]
    assert read_events("**Key frames:** 01:15\n01:15 | 4 | a goal", 60, 120)[1] == [75]
    assert read_events('{"time": "01:15", "event": "a", "key": true}', 60, 120)[1] == [75]
    assert read_events('{"events": [{"time": 75, "event": "a"}], "key_frames": ["01:20", [], 81]}', 60, 120)[1] == [
        80,
        81,
    ]


@pytest.mark.parametrize(
    "text", ["none", "None.", " - nothing happens", "No events", "I looked.\n**None.**\nKEY: none"]
)
def test_a_part_may_have_no_event(text: str) -> None:
    assert read_events(text, 0, 60) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        "", "I see a man.", "01:15", "01:15 | 4", "01:15 | 4 |", "[]", "{}", '{"time": "01:15"}', '{"event": "x"}',
        '[{"time": {}, "event": "x"}]', '{"time": NaN, "event": "x"}', '{"time": 1e400, "event": "x"}', "[" * 100_000,
        '{"a":' * 10_000, '{"events": {"time": 1}}', '{"events": [1, "x", null, [[]]]}', "\ud800", "<tool_call>",
        "Nothing can be seen, as I get no pictures.", "No event can be named: I am not able to watch videos.",
    ],
)  # fmt: skip
def test_an_answer_without_an_event_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        read_events(text, 0, 60)


def test_what_is_read_of_a_hostile_answer_is_bounded_in_size_and_time() -> None:
    flood = "\n".join(f"00:{n % 60:02d} | {1 + n % 5} | {'x' * 500}" for n in range(5000))
    began = time.process_time()
    events, keys = read_events("KEY: " + "00:01 " * 999 + "\n" + flood, 0, 60)
    assert len(events) == MAX_EVENTS and len(keys) == MAX_KEYS
    assert max(len(event.text) for event in events) <= MAX_TEXT + 3
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)
    for text in (
        " " * 59_000 + "x",
        "#" * 59_000,
        "01:1" * 15_000,
        "-*`" * 20_000,
        "KEY:" * 15_000,
        "chapter |" * 6_000,
    ):
        read_merged(text, [60.0])
        with suppress(Unreadable):
            read_events(text, 0, 60)
    assert time.process_time() - began < 5


def test_chapters_summary_and_answer_are_told_apart() -> None:
    text = "Sure.\nCHAPTER | 2 | 00:30 | The end\n- Chapter: 1 | 0:10 | Start\nCHAPTER | 9 | 00:01 | no such file\n"
    text += "CHAPTER | 1 | 99:00 | too late\nSUMMARY: All is\nwell.\n**Answer:** yes,\nin file 1"
    merged = read_merged(text, [60, 70])
    assert merged.chapters == (Chapter(0, 10, "Start"), Chapter(1, 30, "The end"))
    assert (merged.summary, merged.answer) == ("All is\nwell.", "yes,\nin file 1")
    assert read_merged("just words", []).answer == "just words"


def test_a_long_list_of_events_loses_the_least_important_ones() -> None:
    events = [Event(at, 1 + at % 5, f"event {at}") for at in range(50)]
    task, left_out = merging_task("q?", [("a\n.mp4", 50.0, events), ("b.mp4", 9.0, [])], 3, most_bytes=500)
    lines = [line for line in task.splitlines() if "|" in line]
    assert left_out == 50 - len(lines) > 0 and f"{left_out} less important" in task and "3 parts could not" in task
    assert sum("| 5 |" in line for line in lines) == 10 and not any("| 1 |" in line for line in lines)
    assert sum(len(line) + 1 for line in lines) <= 500 and "File 1: a?.mp4" in task and "File 2: b.mp4" in task


def test_a_picture_counts_as_a_picture_and_not_as_its_letters() -> None:
    frames = [Frame(seconds=1.5, jpeg="A" * 40_000), Frame(seconds=1.8, jpeg="B" * 40_000)]
    messages = part_messages("task", frames)
    assert 2 * PICTURE_TOKENS < tokens_of(messages) < 2 * PICTURE_TOKENS + 700
    texts = [part["text"] for part in messages[1]["content"] if part["type"] == "text"]
    assert texts[:3] == ["task", "00:01.5:", "00:01.8:"]
