from __future__ import annotations

from pathlib import Path

import pytest

from model.swarm.video.answers import Event
from model.swarm.video.decoding import Frame
from model.swarm.video.results import MAX_PARTS, PICTURE_BYTES, PICTURES, Found, Part, Video, split


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [(0.001, [0.001]), (60, [60]), (63, [63]), (66.1, [60, 66.1]), (150, [60, 120, 150]), (186, [60, 120, 186])],
)
def test_a_file_is_split_without_a_gap_and_without_a_sliver(seconds: float, ends: list[float]) -> None:
    parts, note = split(seconds, 60)
    assert [part.end for part in parts] == ends and note == ""
    assert [part.start for part in parts] == [0.0, *ends[:-1]]


def test_an_endless_file_is_watched_up_to_a_bound_that_is_named() -> None:
    parts, note = split(1e9, 60)
    assert len(parts) == MAX_PARTS and parts[-1].end == MAX_PARTS * 60 and "of 16,666,667 parts" in note


def test_the_speed_up_is_an_estimate_until_it_is_measured() -> None:
    parts = [Part(0, 60, "answer", decoding_s=1, answer_s=3), Part(60, 120, "failed", "HTTP 500", answer_s=4)]
    found = Found([Video(Path("a.mp4"), parts=parts), Video(Path("b.mp4"), failure="it is empty")], wall_s=4.0)
    assert found.speedup == pytest.approx(2) and found.speedup_told.startswith("at most 2.0 times (estimated")
    assert found.speedup_told.endswith("--sequential measures it)")
    found.unmeasured = "a.mp4 ended as failed"
    assert found.speedup_told.endswith("not measured: a.mp4 ended as failed)")
    found.sequential_s = 6.0
    assert found.speedup == pytest.approx(1.5) and found.speedup_told.startswith("1.5 times (measured")
    assert list(found.failures()) == ["a.mp4 01:00-02:00: HTTP 500", "b.mp4: it is empty"]
    assert Found([]).speedup is None and Found([]).speedup_told == ""


def test_of_a_day_only_the_pictures_of_the_most_important_events_stay_in_memory() -> None:
    found, parts = Found([]), []
    for n in range(2 * PICTURES):
        parts.append(
            Part(n, n + 1, "answer", events=[Event(n, 1 + n % 2 * 4, "a goal")], keys=[Frame(seconds=n, jpeg="/9j/")])
        )
        found.keep_pictures(parts[-1])
        assert sum(len(part.keys) for part in parts) <= PICTURES
    assert [n for n, part in enumerate(parts) if part.keys] == [*range(1, 2 * PICTURES, 2)]
    large = Part(
        0, 1, "answer", events=[Event(0, 5, "a goal")], keys=[Frame(seconds=0, jpeg="A" * (PICTURE_BYTES + 1))]
    )
    found.keep_pictures(large)
    assert large.keys == [] and found.lost_pictures == PICTURES + 1
    second = Part(0, 1, "answer", events=large.events, keys=[Frame(seconds=0, jpeg="A" * PICTURE_BYTES)] * 2)
    found.keep_pictures(second)
    assert sum(len(frame.jpeg) for part in [*parts, second] for frame in part.keys) <= PICTURE_BYTES
