"""What sub-agents and orchestrator are told about videos (source: ours); `answers` reads what they write.

The form is short, so that a weak model can follow it. Names of files are foreign texts, and stand in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.boundary.untrusted_text import shown
from model.swarm.video.answers import Event, clock
from model.swarm.video.decoding import Frame

QUESTION = "What happens in the videos?"
WATCHER = (
    "You watch one part of a video. You see some of its frames, each after its time. Write one line for each event:\n"
    "time | importance from 1 to 5 | what happens\n"
    "For example: 01:15 | 4 | the red car overtakes the blue one\n"
    "Take the times from the frames. At the end, name the times of the frames that show most:\n"
    "KEY: 01:15, 01:20\n"
    "Write nothing else. If nothing happens, write: none"
)
ORCHESTRATOR = (
    "Sub-agents have watched the parts of videos. You get the events that they saw. First divide each video into a few "
    "chapters, one a line:\n"
    "CHAPTER | number of the file | time | title\n"
    "For example: CHAPTER | 1 | 01:15 | The race begins\n"
    "Then write\n"
    "SUMMARY: what happens in all videos together, in a few sentences\n"
    "ANSWER: the answer to the question, with the files and times that it rests on"
)


def part_task(name: str, start: float, end: float, question: str) -> str:
    """What the sub-agent of a part is told, but for its frames."""
    return f"File {shown(name, 80)}, from {clock(start)} to {clock(end)}. Look for: {question}"


def part_messages(task: str, frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """The conversation that asks about a part; pictures are data URLs. Frames of one second differ in their tenths."""
    tenths = len({int(frame.seconds) for frame in frames}) < len(frames)
    content: list[dict[str, Any]] = [{"type": "text", "text": task}]
    for frame in frames:
        content.append({"type": "text", "text": f"{clock(frame.seconds, tenths=tenths)}:"})
        content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame.jpeg}"}})
    content.append({"type": "text", "text": "Write the events of this part."})
    return [{"role": "system", "content": WATCHER}, {"role": "user", "content": content}]


def merging_task(
    question: str, files: Sequence[tuple[str, float, Sequence[Event]]], unread: int, most_bytes: int
) -> tuple[str, int]:
    """What the orchestrator is told, and how many events were left out, the least important ones.

    Args:
        files: name, seconds and events of each.
        unread: parts that nobody could watch.
        most_bytes: of all events together.
    """
    lines = [
        (event.importance, number, f"{clock(event.seconds)} | {event.importance} | {event.text}")
        for number, (_, _, events) in enumerate(files)
        for event in events
    ]
    room, kept = most_bytes, set[int]()
    for place in sorted(range(len(lines)), key=lambda place: -lines[place][0]):
        room -= len(lines[place][2].encode()) + 1
        if room < 0:
            break
        kept.add(place)
    told = [f"Question: {question}"]
    for number, (name, seconds, _) in enumerate(files):
        told.append(f"\nFile {number + 1}: {shown(name, 80)}, {clock(seconds)} long")
        told += [line for place, (_, file, line) in enumerate(lines) if file == number and place in kept]
    if left_out := len(lines) - len(kept):
        told.append(f"\n{left_out} less important events are left out.")
    if unread:
        told.append(f"\n{unread} parts could not be watched.")
    return "\n".join(told), left_out
