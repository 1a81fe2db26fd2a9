"""What a swarm found in videos: files, their parts, and what the parts took (source: ours)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from model.swarm.video.answers import Event, Merged, clock
from model.swarm.video.decoding import Frame, Header

READ = ("answer", "still")  # outcomes of parts that were watched
MAX_PARTS = 2_000  # of one file (ours): 33 hours in minutes
KEYS = 3  # frames that are kept of a part (ours)
PICTURES, PICTURE_BYTES = 120, 6_000_000  # that are kept of all parts: what a page can hold (ours)


@dataclass
class Part:
    """One part of a file, which one sub-agent watches.

    Attributes:
        start, end: seconds since the file's start.
        outcome: "answer"; "still", no new frame comes in it; "undecodable"; "unreadable", what the sub-agent wrote;
            "failed", the server; "stopped"; "not asked"; "" until it is known.
        failure: one line that says what broke; "" if nothing did.
        note: what is missing of it; "" if nothing is.
        keys: frames that are kept, those that say most.
        shown: how many frames the sub-agent saw.
        brightness, motion: as `model.swarm.video.decoding.Clip`.
        decoding_s, answer_s: seconds without waiting for a place or a core here; those of the answer contain whatever
            the server lets it wait, and the pauses between tries.
    """

    start: float
    end: float
    outcome: str = ""
    failure: str = ""
    note: str = ""
    events: list[Event] = field(default_factory=list)
    keys: list[Frame] = field(default_factory=list)
    shown: int = 0
    brightness: list[tuple[float, float]] = field(default_factory=list)
    motion: list[tuple[float, float]] = field(default_factory=list)
    decoding_s: float = 0.0
    answer_s: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0

    @property
    def seconds(self) -> float:
        return self.decoding_s + self.answer_s

    def event_near(self, at: float) -> Event | None:
        """The event that is nearest to a time; None if there is none."""
        return min(self.events, key=lambda event: abs(event.seconds - at), default=None)


@dataclass
class Video:
    """One file. ``failure``: why nothing of it can be read, ``note``: what is missing of it; "" for neither."""

    path: Path
    header: Header | None = None
    failure: str = ""
    note: str = ""
    parts: list[Part] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)

    @property
    def seconds(self) -> float:
        """Of what is watched of it."""
        return self.parts[-1].end if self.parts else 0.0

    @property
    def events(self) -> list[Event]:
        return [event for part in self.parts for event in part.events]


@dataclass
class Found:
    """All that is found so far.

    Attributes:
        merged: what the orchestrator made of it. left_out: events that it did not see.
        failure: why there is no summary; "" if there is one.
        wall_s: seconds from the first part's begin to the last one's end.
        sequential_s: seconds of the same parts, one at a time; None if that was not measured. unmeasured: why not,
            though it was tried; else "".
        lost_pictures: frames of less important events, which were given up for others.
    """

    videos: list[Video]
    merged: Merged = field(default_factory=Merged)
    left_out: int = 0
    failure: str = ""
    wall_s: float = 0.0
    sequential_s: float | None = None
    unmeasured: str = ""
    lost_pictures: int = 0
    # Frames that are kept, the least important one first: (importance, minus the place in the order of coming, ...).
    _pictures: list[tuple[int, int, Part, Frame]] = field(default_factory=list)
    _picture_bytes: int = 0

    @property
    def parts(self) -> list[Part]:
        return [part for video in self.videos for part in video.parts]

    @property
    def events(self) -> list[Event]:
        return [event for video in self.videos for event in video.events]

    @property
    def own_s(self) -> float:
        """The sum of the parts' own seconds."""
        return sum(part.seconds for part in self.parts)

    @property
    def speedup(self) -> float | None:
        """Over one part at a time: measured if `sequential_s` is known, else at most what `own_s` says, as parts that
        share a server or cores each take longer; None if there is nothing to compare."""
        one_at_a_time = self.own_s if self.sequential_s is None else self.sequential_s
        return one_at_a_time / self.wall_s if self.wall_s > 0 and one_at_a_time > 0 else None

    @property
    def speedup_told(self) -> str:
        """The speed-up in words, and which of the two it is; "" if there is none."""
        if self.speedup is None:
            return ""
        if self.sequential_s is not None:
            return f"{self.speedup:.1f} times (measured: {self.sequential_s:.1f} s with one part at a time)"
        why = f"not measured: {self.unmeasured}" if self.unmeasured else "--sequential measures it"
        return (
            f"at most {self.speedup:.1f} times (estimated: the parts' own seconds, {self.own_s:.1f} s, over the "
            f"wall-clock; {why})"
        )

    def keep_pictures(self, part: Part) -> None:
        """Keep the frames of a part that has ended, within PICTURES and PICTURE_BYTES of all parts: those of the most
        important events, and of equal ones the first that came."""
        fitting = [frame for frame in part.keys if len(frame.jpeg) <= PICTURE_BYTES]
        self.lost_pictures += len(part.keys) - len(fitting)
        part.keys = fitting
        for frame in fitting:
            event = part.event_near(frame.seconds)
            came = self.lost_pictures + len(self._pictures)
            heapq.heappush(self._pictures, (event.importance if event else 0, -came, part, frame))
            self._picture_bytes += len(frame.jpeg)
        while len(self._pictures) > PICTURES or self._picture_bytes > PICTURE_BYTES:
            _, _, other, frame = heapq.heappop(self._pictures)
            other.keys = [kept for kept in other.keys if kept is not frame]
            self._picture_bytes -= len(frame.jpeg)
            self.lost_pictures += 1

    def failures(self) -> Iterator[str]:
        """What could not be watched or read, each in one line."""
        for video in self.videos:
            if video.failure:
                yield f"{video.name}: {video.failure}"
            for part in video.parts:
                if part.outcome not in READ:
                    yield f"{_where(video, part)}: {part.failure or part.outcome or 'not watched'}"

    def notes(self) -> Iterator[str]:
        """What was watched, but not all of it, each in one line."""
        for video in self.videos:
            if video.note:
                yield f"{video.name}: {video.note}"
            for part in video.parts:
                if part.outcome in READ and part.note:
                    yield f"{_where(video, part)}: {part.note}"


def _where(video: Video, part: Part) -> str:
    return f"{video.name} {clock(part.start)}-{clock(part.end)}"


def split(seconds: float, part_seconds: float) -> tuple[list[Part], str]:
    """The parts of a file, each of at most ``part_seconds``, and what is left out of it; "" if nothing is.

    A last part of less than a tenth is joined to the one before.
    """
    count = max(1, int(seconds / part_seconds))
    if seconds - count * part_seconds > part_seconds / 10:
        count += 1
    kept = min(count, MAX_PARTS)
    ends = [min((number + 1) * part_seconds, seconds) for number in range(kept)]
    note = ""
    if kept < count:
        note = f"only its first {kept:,} of {count:,} parts are watched: raise --part-seconds"
    else:
        ends[-1] = seconds
    return [Part(start, end) for start, end in zip([0.0, *ends[:-1]], ends, strict=True)], note
