from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from components.runtime.pages import video
from components.runtime.pages.video import render, scale
from model.swarm.chat.board import Board
from model.swarm.critical_steps import CriticalSteps
from model.swarm.trace import Recorder
from model.swarm.video.answers import Chapter, Event, Merged
from model.swarm.video.decoding import Frame
from model.swarm.video.results import PICTURES, Found, Part, Video
from tests.components.finish.page import Page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"


def page_of(found: Found) -> str:
    board = Board(CriticalSteps(2), Recorder(), prices=(1.0, 2.0))
    return render(found, board, question=HOSTILE, model=HOSTILE, endpoint=HOSTILE, stopped=False)


def part(start: float, *events: Event, **more: object) -> Part:
    made = Part(start, start + 60, "answer", events=list(events), keys=[Frame(seconds=start, jpeg="/9j/")])
    made.brightness, made.motion = [(start, 0.5), (start + 30, 0.6)], [(start, 0.0), (start + 30, 0.1)]
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_the_timeline_has_every_part_and_event_of_every_file_where_it_was() -> None:
    goal, foul = Event(30, 5, "goal"), Event(90, 2, "foul", exact=False)
    lost = part(120, outcome="failed", failure="HTTP 500", keys=[])
    videos = [Video(Path("a.mp4"), parts=[part(0, goal), part(60, foul), lost]), Video(Path("b.mp4"), parts=[part(0)])]
    text = page_of(Found(videos, Merged((Chapter(0, 60, "second half"),), "sum", "ans"), wall_s=2.0))
    page = Page(text)
    assert re.findall(r'class="event (i\d)" style="left:([\d.]+)%', text) == [("i5", "16.667"), ("i2", "50.000")]
    pieces = re.findall(r'class="piece (\w*)" style="left:([\d.]+)%;width:([\d.]+)%', text)
    assert pieces == [
        ("", "0.000", "33.333"),
        ("", "33.333", "33.333"),
        ("lost", "66.667", "33.333"),
        ("", "0.000", "33.333"),
    ]
    assert re.findall(r'href="#(\w+)"', text) == re.findall(r'<tr id="(\w+)"', text) == ["f0e0", "f0e1"]
    assert {"goal", "second half", "sum", "ans", "about 01:30", "a.mp4 02:00-03:00: HTTP 500"} <= set(page.texts)
    assert text.count('src="data:image/jpeg;base64,/9j/"') == 3
    assert page.texts.count("Events") == 2 and {"Brightness", "Motion"} <= set(page.texts)


def test_hostile_texts_stay_texts_and_the_page_loads_nothing() -> None:
    event = Event(1, 3, HOSTILE)
    hurt = part(0, event, outcome="answer", note=HOSTILE)
    found = Found([Video(Path(HOSTILE.replace("/", "")), parts=[hurt, part(60, outcome=HOSTILE, failure=HOSTILE)])])
    found.videos[0].note, found.failure = HOSTILE, HOSTILE
    found.merged = Merged((Chapter(0, 1, HOSTILE),), HOSTILE, HOSTILE)
    text = page_of(found)
    assert text.count("<script") == 1 and "<img src=x" not in text and "49" not in Page(text).texts
    assert HOSTILE in Page(text).texts and "default-src 'none'" in text
    assert not re.search(r'(?:src|href)="(?!#|data:image/jpeg)', text)


def test_the_page_is_bounded_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "EVENTS", 100)
    monkeypatch.setattr(video, "PIECES", 2)
    monkeypatch.setattr(video, "FEWEST_PIECES", 2)
    many = [Event(at / 100, 1 + (at == 7), f"event {at}") for at in range(600)]
    picture = Frame(seconds=0.0, jpeg="A" * 1_000)
    parts = [part(60 * number, keys=[picture]) for number in range(PICTURES + 30)]
    parts[0].events = many
    parts[-1].outcome, parts[-1].failure = "failed", "HTTP 500 " * 99
    found = Found([Video(Path("a.mp4"), parts=parts)])
    for each in parts:
        found.keep_pictures(each)
    text = page_of(found)
    assert "The 500 least important events are not" in text and "event 7<" in text
    assert text.count("<img") == PICTURES and "30 are left out" in text
    pieces = re.findall(r'class="piece (\w*)" style="left:([\d.]+)%;width:([\d.]+)%" title="([^"]*)"', text)
    assert [piece[:3] for piece in pieces] == [("", "0.000", "50.000"), ("lost", "50.000", "50.000")]
    assert pieces[1][3].startswith("1:15:00–2:30:00 1 of 75 parts not watched; HTTP 500") and len(pieces[1][3]) < 200


def test_a_day_of_video_is_drawn_in_seconds() -> None:
    parts = [part(60 * number, brightness=[(60 * number + n / 4, 0.5) for n in range(240)]) for number in range(1440)]
    began = time.process_time()
    text = page_of(Found([Video(Path("a.mp4"), parts=parts)]))
    assert time.process_time() - began < 10 and "Brightness" in text


def test_what_was_watched_in_part_is_not_among_what_was_not_watched() -> None:
    parts = [part(0, note="only key frames"), part(60, outcome="failed", failure="HTTP 500")]
    texts = Page(page_of(Found([Video(Path("a.mp4"), parts=parts, note="only its first part")]))).texts
    lost, partly = texts.index("What was not watched"), texts.index("What was watched in part")
    assert lost < texts.index("a.mp4 01:00-02:00: HTTP 500") < partly < texts.index("a.mp4: only its first part")
    assert partly < texts.index("a.mp4 00:00-01:00: only key frames")


@pytest.mark.parametrize("found", [Found([]), Found([Video(Path("a.mp4"), failure="it is empty")])])
def test_a_page_of_nothing_says_so(found: Found) -> None:
    text = page_of(found)
    assert "0 events" in text and "(none)" in text


def test_a_scale_has_a_few_round_times() -> None:
    assert scale(10) == [0, 2, 4, 6, 8, 10] and scale(86_400) == [14_400 * n for n in range(7)]
    assert all(1 < len(scale(span)) <= 10 for span in (1.0, 7.0, 59.0, 5_000.0, 1e6, 3e7))
