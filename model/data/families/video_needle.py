"""``video_needle``: a long video of empty frames in which a digit is shown for two seconds, and its label (ours).

Frames are as small as one language-model token, so a long video is many chunks of 4 frames (each with its timestamp)
rather than many pixels. The best constant answer is right in a tenth of the cases.

It is a document, not a conversation, so that a mixture with much of it does not consist of short answers to questions
about pictures; ``interleaved`` says what such a mixture costs.

Data: scikit-learn's digits, held out as in ``digits``.
"""

from __future__ import annotations

import math

import numpy as np

from model.codec.video import encode_mp4
from model.data.families.digits import digit_sources, label, paste, pick, source_of, write
from model.data.families.family import Family
from model.data.samples.sample import Sample, Split

SIZE = 28  # pixels of a frame: one language-model token
CHUNK = 4  # frames that share their tokens (``ImageConfig.temporal_merge_kernel_size``)
SHORTEST, LONGEST = 3, 50  # chunks of a video, about 17 tokens each (ours)
BACKGROUND = 50  # of 255: the brightest empty frame
LABEL = "digit: "


def video_needle_sample(
    rng: np.random.Generator, split: Split, index: int, chunks: int, depth: tuple[float, float] = (0.0, 1.0)
) -> Sample:
    """One video with its label.

    Args:
        chunks: length of the video in chunks of 4 frames.
        depth: bounds of the digit's place: 0 is the first chunk, 1 the last.
    """
    digit_id = pick(rng, split, 1)[0]
    frames = np.repeat(rng.integers(0, BACKGROUND, chunks, dtype=np.uint8), CHUNK)[:, None, None]
    frames = np.tile(frames, (1, SIZE, SIZE))
    shown = min(chunks - 1, int(rng.uniform(*depth) * chunks))
    size = int(rng.integers(22, SIZE + 1))
    top, left = rng.integers(SIZE - size + 1, size=2)
    ink = write(rng, split, digit_id, size, rng.uniform(0.7, 1.0))
    for canvas in frames[shown * CHUNK : (shown + 1) * CHUNK]:
        paste(canvas, ink, int(top), int(left))
    return Sample(
        key=f"video_needle-{split}-{index:06d}", family="video_needle", ability="knowledge", modality="video",
        source=source_of(digit_id),
        segments=[
            {"type": "video", "media": "mp4"},
            {"type": "text", "text": LABEL, "loss": False},
            {"type": "text", "text": label(digit_id), "loss": True},
        ],
        media={"mp4": encode_mp4(np.repeat(frames[..., None], 3, axis=-1))},
    )  # fmt: skip


def video_needle_family(longest: int) -> Family:
    """Videos of ``SHORTEST`` to ``longest`` chunks; the logarithm of the length is uniform."""

    def generate(rng: np.random.Generator, split: Split, index: int) -> Sample:
        chunks = round(math.exp(rng.uniform(math.log(SHORTEST), math.log(longest))))
        return video_needle_sample(rng, split, index, chunks)

    return Family("video_needle", "knowledge", "video", "document", generate, digit_sources)


VIDEO_NEEDLE = video_needle_family(LONGEST)
