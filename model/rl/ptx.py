"""The pre-training loss beside the policy's (PTX), so that what no prompt asks for is not forgotten.

Source: K2 report, section on RL. Its weight and data are ours: text and vision halves of the pre-training mixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.data.folder import DataFolder
from model.data.mixtures import LONG_TEXT, VISION, blend
from model.data.stream import MixtureStream, StreamState

VISION_SHARE = 0.5  # of its tokens


@dataclass(frozen=True)
class PTX:
    """What the RL loop reads one batch of per gradient step.

    Attributes:
        stream: opens the data at its beginning (None) or at a saved state.
        weight: of its cross-entropy; the policy loss has weight 1.
    """

    stream: Callable[[StreamState | None], MixtureStream]
    weight: float


def ptx(data: DataFolder, *, weight: float, rows: int, tokens: int, seed: int) -> PTX | None:
    """``rows`` full rows of ``tokens`` tokens per gradient step, or None for weight 0.

    Families of the mixtures that the data folder does not hold are left out.
    """
    if not weight:
        return None
    mixture = blend((LONG_TEXT, 1 - VISION_SHARE), (VISION, VISION_SHARE))
    mixture = {name: share for name, share in mixture.items() if name in data.families()}
    return PTX(data.mixture(mixture, tokens_per_row=tokens, rows=rows, seed=seed), weight)
