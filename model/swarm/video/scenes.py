"""Which frames of a video say most: the first of each scene, then those that fill the widest gaps (source: ours).

A scene begins where the colours of two neighbouring frames differ much. Shapes: H, W pixels, N frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 16  # of each colour channel's histogram
CUT = 0.3  # share of the pixels whose colour has changed, from which on a new scene has begun


def histogram(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How often each channel's values fall into each of BINS ranges: [C, BINS], each row sums to 1."""
    channels = pixels_HWC.reshape(-1, pixels_HWC.shape[-1]).T // (256 // BINS)
    return np.stack([np.bincount(channel, minlength=BINS) for channel in channels]) / channels.shape[1]


def change(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How much two histograms differ: 0, the same colours, to 1, none in common."""
    return float(np.abs(one - other).sum(axis=1).mean() / 2)


def chosen(changes: Sequence[float], most: int) -> list[int]:
    """The places of at most ``most`` of N frames, in their order.

    Args:
        changes: of each frame, how much it differs from the one before; of the first one any number.
        most: at least 1.
    """
    count = len(changes)
    if count <= most:
        return list(range(count))
    cuts = [place for place in range(1, count) if changes[place] >= CUT]
    largest = sorted(cuts, key=lambda place: -changes[place])[: most - 1]
    starts = [0, *sorted(largest)]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], count], strict=True)]
    taken = [1] * len(starts)
    for _ in range(most - len(starts)):  # the next frame goes to the scene whose frames are furthest apart
        widest = max(range(len(starts)), key=lambda scene: lengths[scene] / taken[scene])
        taken[widest] += 1
    return [start + length * n // k for start, length, k in zip(starts, lengths, taken, strict=True) for n in range(k)]
