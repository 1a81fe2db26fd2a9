from __future__ import annotations

import re

import pytest

from components.runtime.pages.episode import brief, ended, render, seconds
from components.runtime.pages.trace_files import JSON_BYTES, PAGE_BYTES, trace_files
from model.swarm.trace import Recorder, Trace
from tests.components.finish.page import Page
from tests.swarm.test_trace import recorded


def test_the_page_has_a_lane_and_the_messages_of_every_agent_and_marks_the_critical_path() -> None:
    trace = recorded(2, 4, 3)
    page = Page(text := render(trace))
    assert [name for name in page.classes if name.split()[0] == "lane"] == [
        "lane critical", "lane first", "lane critical", "lane",
    ]  # fmt: skip
    assert page.classes.count("folder") == 4 and page.texts.count("part 1") == 3  # label, summary, task
    # A bar for each completion, one for the created agent, and one for the three calls that wait.
    assert [page.classes.count(name) - 1 for name in ("completion", "tool", "waiting")] == [3 + 2 + 4 + 3, 1, 1]
    assert all(f'id="{address[1:]}"' in text for address in page.addresses)
    assert {"0.5", "0.75", "7 of 12", "7.0 s"} <= set(page.texts)


def test_lanes_lie_where_their_steps_were() -> None:
    text = render(recorded(2, 4))
    widths = re.findall(r'class="completion" style="left:([\d.]+)%;width:([\d.]+)%', text)
    found = [(float(left), float(width)) for left, width in widths]
    one = 100 / 7  # the episode takes 7 seconds
    assert found[0] == pytest.approx((0, one), abs=0.01) and found[-1] == pytest.approx((5 * one, one), abs=0.01)
    assert max(left + width for left, width in found) == pytest.approx(100, abs=0.01)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Page(text := render(recorded(1)))
    assert all(address.startswith("#") for address in page.addresses)
    assert "http" not in text and "@import" not in text and "url(" not in text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"])
def test_hostile_text_is_shown_as_text(hostile: str) -> None:
    page = Page(text := render(recorded(2, text=hostile)))
    assert hostile in page.texts and text.count("<script>") == 1
    assert not any("alert" in address or address == "x" for address in page.addresses)


def test_very_long_lines_and_characters_that_nobody_sees_do_not_break_the_page() -> None:
    text = render(recorded(1, text="x" * 100_000 + "\x00\u202e\ud83d"))
    assert "\x00" not in text and "\u202e" not in text
    Page(text)


def test_an_agent_without_steps_and_an_episode_without_time_have_a_page() -> None:
    recorder = Recorder(lambda: 0.0)
    main = recorder.agent("agent", task="q")
    recorder.agent("lost", parent=main, main_step=1).ended("failed", "it is gone")
    page = Page(render(recorder.trace(question="q", outcome="failed", failure="it is gone", budget=3)))
    assert "no step: it broke" in page.texts and page.texts.count("It took no step.") == 2
    assert page.texts.count("it is gone") == 2


def test_words_for_endings_times_and_long_texts() -> None:
    assert (ended("answer"), ended("budget"), ended("odd")) == ("", "all steps were used", "odd")
    assert [seconds(at) for at in (0, 0.012, 3.44, 125)] == ["0 s", "12 ms", "3.4 s", "2 min 5 s"]
    assert brief("a\n b") == "a b" and len(brief("x" * 500)) == 91


def test_what_is_kept_of_an_episode_is_small_and_can_be_read_again() -> None:
    files = trace_files("round-0003-best", recorded(2, 3))
    assert list(files) == ["swarm/round-0003-best.json", "swarm/round-0003-best.html"]
    assert Trace.from_json(files["swarm/round-0003-best.json"]) == recorded(2, 3)
    for text in ("long " * 4000, "<&\"'>" * 4000):
        one, page = trace_files("n", recorded(*[4] * 8, text=text)).values()
        assert len(one.encode()) <= JSON_BYTES and len(page.encode()) <= PAGE_BYTES
    assert trace_files("n", recorded(*[12] * 50, text="x" * 400)) == {}
