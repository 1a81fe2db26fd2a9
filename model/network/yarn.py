"""A longer context by YaRN (arXiv 2309.00071), in steps: K2.5 goes from 4,096 to 32,768 and on to 262,144 positions.

Shapes: r = rope dims / 2.
"""

from __future__ import annotations

from model.boundary.errors import MoonflowError
from model.network.attention import rope_frequencies_r
from model.network.config import RopeScaling
from model.network.multimodal import KimiK25


def original_window(model: KimiK25) -> int:
    """Positions that the model was trained on before any extension."""
    text = model.config.text_config
    if text.rope_scaling is not None:
        return text.rope_scaling.original_max_position_embeddings
    return text.max_position_embeddings


def extend_context(model: KimiK25, window: int) -> None:
    """Interpolate positions, in place, so that ``window`` of them look like those of the original window.

    The model's config then states the new window, and rotation and softmax scale follow from it. The factor is relative
    to the original window: earlier extensions do not matter, and repeating an extension changes nothing.

    Raises:
        MoonflowError: ``window`` is not longer than the original one.
    """
    original = original_window(model)
    if window <= original:
        raise MoonflowError(f"a context of {original} positions cannot be extended to {window}: ask for more")
    text = model.config.text_config
    yarn = RopeScaling(factor=window / original, original_max_position_embeddings=original)
    longer = text.model_copy(update={"rope_scaling": yarn, "max_position_embeddings": window})
    # Configs are replaced, not changed: a checkpoint that is being saved in the background still uses the old ones.
    for attention in model.attentions():
        attention.config = longer
    for router in model.routers():
        router.config = longer
    model.config = model.config.model_copy(update={"text_config": longer})
    rotary = model.language_model.model.rotary
    rotary.frequencies_r.copy_(rope_frequencies_r(longer))
