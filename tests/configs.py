"""The presets with other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.network.config import ModelConfig, RopeScaling, preset

YARN = RopeScaling(factor=4.0, original_max_position_embeddings=256)


def changed(
    config: ModelConfig, text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None, **fields: Any
) -> ModelConfig:
    """``config`` with other values in its text part, in its vision part and beside them; nothing is checked."""
    parts = {
        "text_config": config.text_config.model_copy(update=text),
        "vision_config": config.vision_config.model_copy(update=vision),
    }
    return config.model_copy(update={**parts, **fields})


NARROW = changed(  # steps of it take milliseconds
    preset("tiny"),
    {"hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2},
    {
        "vt_hidden_size": 32, "mm_hidden_size": 32, "vt_intermediate_size": 48, "vt_num_hidden_layers": 1,
        "text_hidden_size": 48,
    },
)  # fmt: skip
