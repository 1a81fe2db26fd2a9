"""What sub-agents and the orchestrator write about a video, read leniently (source: ours).

A weak model is asked for lines such as ``01:15 | 4 | a goal``. JSON, one object a line or all in one list, is read too.
Every text is hostile: what is read of it is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.boundary.untrusted_text import cut, read_json

MAX_CHARACTERS, MAX_LINES, MAX_LINE = 60_000, 400, 1_000  # of one answer that are read
MAX_EVENTS, MAX_KEYS = 60, 20  # of one part
MAX_TEXT, MAX_SUMMARY, MAX_CHAPTERS = 300, 8_000, 100
LEAST, MIDDLE, MOST = 1, 3, 5  # importance
WORDS = {"low": 1, "minor": 1, "medium": 3, "normal": 3, "high": 5, "major": 5, "critical": 5}
_CLOCK = r"(?:(?P<h>\d{1,3}):)?(?P<m>\d{1,3}):(?P<s>\d{1,2}(?:[.,]\d{1,3})?)"
_SECONDS = r"(?P<only>\d{1,7}(?:\.\d{1,3})?)\s*(?:s|sec|seconds)?"
_TIME = re.compile(rf"(?:{_CLOCK}|{_SECONDS})")
_BULLET = r"(?:[-*•>|]|\d{1,3}(?:\)|\.(?!\d)))?\s*[\[(*`]*"  # 12.5 is a time, and not number 12 of a list
_START = re.compile(rf"{_BULLET}(?:{_CLOCK}|(?P<only>\d{{1,7}}(?:\.\d{{1,3}})?)\s*s?(?=\s*\|))")
_UNTIL = re.compile(r"\s*(?:-|–|to)\s*\d{1,3}(?::\d{1,2}){1,2}(?:[.,]\d{1,3})?")
_KEY = re.compile(r"[-*`|]*\s*key(?:\s+frames?)?\s*[:=|]", re.IGNORECASE)
# The words of a whole line: a refusal such as "nothing can be seen, as I have no pictures" is not one of them.
_NOTHING = re.compile(
    r"(?:events? )?(?:none|nothing(?: happens| happened| to report| of note)?|no events?(?: happen| happened| occur)?)"
    r"(?: (?:here|in (?:this|the) (?:part|video|clip)))?"
)
_CHAPTER = re.compile(r"[-*|]?\s*chapter\s*[|:]\s*(?:file\s*)?(?P<file>\d{1,5})\s*\|(?P<rest>.*)", re.IGNORECASE)
_SECTION = re.compile(r"[#*]*\s*(?P<name>summary|answer|chapters)\s*[*]*\s*:\s*[*]*(?P<rest>.*)", re.IGNORECASE)


class Unreadable(Exception):
    """An answer in which there is no event, and which does not say that there is none."""


@dataclass(frozen=True)
class Event:
    """Something that happens; ``seconds`` since the file's start, ``importance`` from 1 to 5.

    ``exact`` is False if the answer gave a time outside of the part, which was moved to its edge.
    """

    seconds: float
    importance: int
    text: str
    exact: bool = True


@dataclass(frozen=True)
class Chapter:
    """Where something new begins: ``file`` counts from 0."""

    file: int
    seconds: float
    title: str


@dataclass(frozen=True)
class Merged:
    """What the orchestrator wrote; each may be empty."""

    chapters: tuple[Chapter, ...] = ()
    summary: str = ""
    answer: str = ""


def clock(seconds: float, *, tenths: bool = False) -> str:
    """``mm:ss``, or ``h:mm:ss`` from an hour on; what is left of a second or a tenth is cut off."""
    whole = int(seconds)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}" + (f".{int(seconds * 10) % 10}" if tenths else "")
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def read_events(text: str, start: float, end: float) -> tuple[list[Event], list[float]]:
    """The events of a part from ``start`` to ``end``, in their order, and the times of its key frames.

    Raises:
        Unreadable: there is neither an event nor the word that there is none.
    """
    events: list[Event] = []
    keys: list[float] = []
    bounded = text[:MAX_CHARACTERS]
    records = list(_records(bounded))
    for record in records:
        seconds = _time(record.get("time", record.get("seconds", record.get("t"))))
        said = record.get("event", record.get("text", record.get("description", record.get("what"))))
        if seconds is not None and isinstance(said, str) and said.strip():
            events.append(_event(seconds, record.get("importance", MIDDLE), said, start, end))
            keys += [seconds] if record.get("key") is True else []
        named = record.get("key_frames", record.get("keys"))
        keys += [at for at in map(_time, named if isinstance(named, list) else []) if at is not None]
    for line in [] if records else _lines(bounded):
        if found := _KEY.match(line):
            keys += [at for each in _TIME.finditer(line, found.end()) if (at := _seconds(each)) is not None]
        elif (event := _line(line, start, end)) is not None:
            events.append(event)
    if not events and not any(_NOTHING.fullmatch(_words(line)) for line in _lines(bounded)):
        raise Unreadable
    events = sorted(events, key=lambda event: -event.importance)[:MAX_EVENTS]
    return sorted(events, key=lambda event: event.seconds), keys[:MAX_KEYS]


def _lines(text: str) -> list[str]:
    """Lines without the blanks around them; a regular expression may try each place of one, so they are bounded."""
    return [line.strip()[:MAX_LINE] for line in text.splitlines()[:MAX_LINES]]


def _words(line: str) -> str:
    """A line's words in small letters, without what stands around them."""
    return " ".join(re.findall(r"\w+", line.lower()))


def _line(line: str, start: float, end: float) -> Event | None:
    """The event of a line; None if it begins with no time or says nothing."""
    found = _START.match(line)
    seconds = _seconds(found) if found else None
    if found is None or seconds is None:
        return None
    rest = line[found.end() :]
    if until := _UNTIL.match(rest):
        rest = rest[until.end() :]
    fields = [field.strip(" \t*`[]()") for field in rest.lstrip(" \t*`])").lstrip("|:-–—").split("|")]
    importance: Any = MIDDLE
    if (said := _importance(fields[0])) is not None and (len(fields) > 1 or len(fields[0]) < 3):
        importance, fields = said, fields[1:]
    text = " | ".join(field for field in fields if field)
    return _event(seconds, importance, text, start, end) if text else None


def _event(seconds: float, importance: Any, text: str, start: float, end: float) -> Event:
    near = 1.0  # frames' times are written without fractions
    kept = min(max(seconds, start), end)
    given = _importance(importance)
    said = cut(" ".join(text.split())[:MAX_TEXT], MAX_TEXT)
    return Event(kept, MIDDLE if given is None else given, said, abs(kept - seconds) <= near)


def _importance(value: Any) -> int | None:
    """From 1 to 5; None if it is none."""
    if isinstance(value, str):
        first = re.match(r"\D{0,12}?(\d{1,3})", value) if len(value) <= 24 else None
        value = int(first[1]) if first else WORDS.get(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(min(max(value, LEAST), MOST))


def _time(value: Any) -> float | None:
    """Seconds that a value of JSON says; None if it says none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value < 1e7 else None
    found = _TIME.match(value.strip("[] ")) if isinstance(value, str) else None
    return _seconds(found) if found else None


def _seconds(found: re.Match[str]) -> float | None:
    if found["only"]:
        return float(found["only"])
    if found["s"] is None:
        return None
    seconds = int(found["h"] or 0) * 3600 + int(found["m"]) * 60 + float(found["s"].replace(",", "."))
    return seconds if math.isfinite(seconds) else None


def _records(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer: one a line, or a list of them, which may stand in an object or a code block."""
    bare = text.strip()  # not by a regular expression, which would try each blank of many
    if bare.startswith("```"):
        bare = bare.partition("\n")[2].removesuffix("```").strip()
    if bare[:1] in "[{":
        try:
            whole = read_json(bare)
        except ValueError:
            whole = None
        if isinstance(whole, dict) and isinstance(whole.get("events"), list):
            yield from (each for each in whole["events"][:MAX_LINES] if isinstance(each, dict))
            yield {name: whole[name] for name in ("key_frames", "keys") if name in whole}
            return
        if isinstance(whole, list | dict):
            yield from (each for each in (whole if isinstance(whole, list) else [whole]) if isinstance(each, dict))
            return
    for line in text.splitlines()[:MAX_LINES]:
        if line.lstrip().startswith("{"):
            try:
                record = read_json(line.strip().rstrip(","))
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def read_merged(text: str, lengths: list[float]) -> Merged:
    """Chapters, summary and answer; a text that names none of them is the answer.

    Args:
        lengths: seconds of each file; a chapter of no file or beyond its end is left out.
    """
    chapters: list[Chapter] = []
    parts: dict[str, list[str]] = {"summary": [], "answer": [], "": []}
    section = ""
    for line in _lines(text[:MAX_CHARACTERS]):
        if found := _CHAPTER.match(line):
            chapter = _chapter(int(found["file"]) - 1, found["rest"], lengths)
            chapters += [chapter] if chapter and len(chapters) < MAX_CHAPTERS else []
        elif (found := _SECTION.match(line)) is not None:
            section = found["name"].lower() if found["name"].lower() in parts else ""
            parts[section].append(found["rest"].strip())
        else:
            parts[section].append(line)
    said = {name: cut("\n".join(lines).strip()[:MAX_SUMMARY], MAX_SUMMARY) for name, lines in parts.items()}
    chapters.sort(key=lambda chapter: (chapter.file, chapter.seconds))
    return Merged(tuple(chapters), said["summary"], said["answer"] or ("" if said["summary"] else said[""]))


def _chapter(file: int, rest: str, lengths: list[float]) -> Chapter | None:
    if not 0 <= file < len(lengths):
        return None
    event = _line(rest, 0.0, lengths[file])
    return Chapter(file, event.seconds, event.text) if event and event.exact else None
