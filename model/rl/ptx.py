"""The pre-training loss that is added to the policy loss (PTX), so that RL does not unlearn what no prompt asks for.

Source: K2 report, section on RL. Weight and data are ours: half text and half vision of the pre-training mixtures.
An ablation of delegation reads no ``wide_search``, of which half delegates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.data.batches.folder import DataFolder
from model.data.batches.stream import MixtureStream, StreamState
from model.data.order.family_shares import LONG_TEXT, VISION
from model.data.order.shares import Mixture, blend

VISION_SHARE = 0.5  # of its tokens
DELEGATING = "wide_search"


def half_vision(text: Mixture) -> Mixture:
    """A mixture of text, and as many tokens of vision."""
    return blend((text, 1 - VISION_SHARE), (VISION, VISION_SHARE))


PRETRAINING = half_vision(LONG_TEXT)
WITHOUT_DELEGATION = half_vision({name: share for name, share in LONG_TEXT.items() if name != DELEGATING})


@dataclass(frozen=True)
class PTX:
    """Pre-training data, of which the RL loop reads one batch per gradient step.

    Attributes:
        stream: opens the data at its beginning (None) or at a saved state.
        weight: of the cross-entropy; the policy loss has weight 1.
    """

    stream: Callable[[StreamState | None], MixtureStream]
    weight: float


def ptx(
    data: DataFolder, *, weight: float, rows: int, tokens: int, seed: int, mixture: Mixture = PRETRAINING
) -> PTX | None:
    """Pre-training data with ``rows`` rows of ``tokens`` tokens per gradient step; None for weight 0.

    Families of the mixtures that the data folder does not hold are left out.
    """
    if not weight:
        return None
    mixture = {name: share for name, share in mixture.items() if name in data.families()}
    return PTX(data.mixture(mixture, tokens_per_row=tokens, rows=rows, seed=seed), weight)
