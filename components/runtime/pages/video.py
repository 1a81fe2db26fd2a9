"""The page of videos that a swarm has watched: timeline, key frames, charts, events and parts (source: ours).

``video.html`` lays it out. All texts come from files and models; the template escapes them, and the page's own policy
lets a browser load nothing. Its size is bounded, whatever was found; that of its pictures by `Found.keep_pictures`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from components.runtime.pages import template
from components.runtime.pages.charts import COLOURS, line_chart, thinned
from components.runtime.pages.episode import seconds
from model.boundary.untrusted_text import cut
from model.swarm.chat.board import Board
from model.swarm.video.answers import clock
from model.swarm.video.results import READ, Found, Part, Video

_PAGE = Path(__file__).with_name("video.html")
EVENTS, ROWS, FAILURES = 3_000, 2_000, 100  # that the page shows
PIECES, FEWEST_PIECES, TITLE = 4_000, 40, 160  # of all timelines, of one, and characters of what a pointer shows
BINS = 20  # of events over time in a short file
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400)  # seconds of a scale


@dataclass(frozen=True)
class Place:
    """Something on the timeline; ``left`` and ``width`` in percent of the longest file."""

    left: float
    width: float
    title: str
    css: str = ""


@dataclass(frozen=True)
class Mark:
    """An event on the timeline and in the list; ``at`` is its time in words."""

    left: float
    at: str
    importance: int
    text: str
    exact: bool
    anchor: str


@dataclass(frozen=True)
class Track:
    """A file on the timeline."""

    name: str
    pieces: Sequence[Place]
    chapters: Sequence[Place]
    events: Sequence[Mark]


@dataclass(frozen=True)
class Picture:
    """A key frame: a JPEG in base64, with the event that it is nearest to."""

    jpeg: str
    name: str
    at: str
    text: str


def render(found: Found, board: Board, *, question: str, model: str, endpoint: str, stopped: bool) -> str:
    """The page, with no script, font or picture from elsewhere."""
    span = max((video.seconds for video in found.videos), default=0.0) or 1.0
    shown = _most_important(found)
    rows = [(video.name, part) for video in found.videos for part in video.parts]
    failures, notes = list(found.failures()), list(found.notes())
    longest = sorted(found.videos, key=lambda video: -video.seconds)[:COLOURS]
    charted = [video for video in found.videos if video.parts and video in longest]
    return template.render(
        _PAGE,
        title="videos", found=found, board=board, question=question, model=model, endpoint=endpoint, stopped=stopped,
        about="" if board.counted else "about ", length=sum(video.seconds for video in found.videos),
        watched=sum(part.outcome in READ for part in found.parts), read=READ,
        unwatched=[
            ("What was not watched", failures[:FAILURES], max(0, len(failures) - FAILURES)),
            ("What was watched in part", notes[:FAILURES], max(0, len(notes) - FAILURES)),
        ],
        marks=[(100 * at / span, clock(at)) for at in scale(span)],
        tracks=[_track(found, number, shown, span) for number in range(len(found.videos))],
        unshown=len(found.events) - len(shown),
        pictures=_pictures(found),
        charts=_charts(charted), charted=len(charted), uncharted=len(found.videos) > COLOURS,
        rows=rows[:ROWS], unshown_rows=max(0, len(rows) - ROWS), seconds=seconds, clock=clock,
    )  # fmt: skip


def _most_important(found: Found) -> set[int]:
    """The ids of the events that the page shows."""
    return {id(event) for event in heapq.nlargest(EVENTS, found.events, key=lambda event: event.importance)}


def scale(span: float) -> list[float]:
    """At most about eight round times from 0 to ``span`` seconds."""
    step = next((step for step in STEPS if span / step <= 8), STEPS[-1] * math.ceil(span / STEPS[-1] / 8))
    return [step * number for number in range(int(span / step) + 1)]


def _track(found: Found, number: int, shown: set[int], span: float) -> Track:
    video = found.videos[number]
    joined = math.ceil(len(video.parts) / max(FEWEST_PIECES, PIECES // len(found.videos))) or 1
    pieces = [_piece(video.parts[first : first + joined], span) for first in range(0, len(video.parts), joined)]
    own = [chapter for chapter in found.merged.chapters if chapter.file == number]
    ends = [*(chapter.seconds for chapter in own[1:]), video.seconds]
    chapters = [
        Place(100 * chapter.seconds / span, 100 * max(0.0, end - chapter.seconds) / span, chapter.title)
        for chapter, end in zip(own, ends, strict=False)
    ]
    events = [event for event in video.events if id(event) in shown]
    marks = [
        Mark(
            100 * event.seconds / span, _at(event.seconds, video), event.importance, event.text, event.exact,
            f"f{number}e{place}",
        )
        for place, event in enumerate(events)
    ]  # fmt: skip
    return Track(video.name, pieces, chapters, marks)


def _piece(parts: Sequence[Part], span: float) -> Place:
    """Neighbouring parts as one piece, which looks like the worst of them."""
    lost = [part for part in parts if part.outcome not in READ]
    css = "lost" if lost else "quiet" if all(part.outcome == "still" for part in parts) else ""
    start, end = parts[0].start, parts[-1].end
    told = next((part.failure or part.note for part in [*lost, *parts] if part.failure or part.note), "")
    count = f"{len(lost)} of {len(parts)} parts not watched; " if lost and len(parts) > 1 else ""
    title = cut(f"{clock(start)}–{clock(end)} {count}{told}".strip(), TITLE)
    return Place(100 * start / span, 100 * (end - start) / span, title, css)


def _at(at: float, video: Video) -> str:
    return clock(at, tenths=video.seconds < 60)


def _pictures(found: Found) -> list[Picture]:
    """The key frames that were kept, in the order of the files."""
    return [
        Picture(frame.jpeg, video.name, _at(frame.seconds, video), event.text if event else "")
        for video in found.videos
        for part in video.parts
        for frame in part.keys
        for event in [part.event_near(frame.seconds)]
    ]


def _charts(videos: Sequence[Video]) -> list[tuple[str, str, Markup]]:
    """Title, note and SVG of each; the times are in minutes if a file is longer than two."""
    unit, name = (60.0, "minutes") if max((video.seconds for video in videos), default=0.0) > 120 else (1.0, "seconds")

    def chart(values: dict[str, list[tuple[float, float]]], label: str) -> Markup:
        series = {name: [(at / unit, value) for at, value in thinned(points)] for name, points in values.items()}
        return line_chart(series, x_label=name, y_label=label)

    names = {id(video): f"{number + 1}. {video.name[:24]}" for number, video in enumerate(videos)}
    bright = {names[id(video)]: [point for part in video.parts for point in part.brightness] for video in videos}
    motion = {names[id(video)]: [point for part in video.parts for point in part.motion] for video in videos}
    rates = {names[id(video)]: _rate(video) for video in videos}
    drawn = [
        ("Events", "per minute", chart(rates, "events per minute")),
        ("Brightness", "mean of a frame, from 0 to 1", chart(bright, "brightness")),
        ("Motion", "mean difference from the frame before, from 0 to 1", chart(motion, "motion")),
    ]
    return [each for each in drawn if each[2]]


def _rate(video: Video) -> list[tuple[float, float]]:
    """Events per minute, in the middle of each of at least BINS equal times of at most a minute."""
    count = max(BINS, round(video.seconds / 60))
    width, found = video.seconds / count, [0] * count
    for event in video.events:
        found[min(int(event.seconds / width), count - 1)] += 1
    return [((number + 0.5) * width, 60 * events / width) for number, events in enumerate(found)]
