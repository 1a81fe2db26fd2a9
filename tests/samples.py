"""Samples and episodes by hand: what a test leaves out of them does not matter to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.codec.image import encode_png
from model.data.samples.sample import Sample
from model.rl.environment import Episode

PNG = encode_png(np.zeros((20, 30, 3), np.uint8))


def make_sample(**fields: Any) -> Sample:
    values = {"key": "k", "family": "f", "ability": "knowledge", "modality": "image", "source": "s"}
    return Sample(**{**values, **fields})


def captioned(**fields: Any) -> Sample:
    """A picture and a text to learn."""
    segments = [{"type": "image", "media": "png"}, {"type": "text", "text": "a cat", "loss": True}]
    return make_sample(**{"segments": segments, "media": {"png": PNG}, **fields})


def make_episode(**fields: Any) -> Episode:
    """A prompt of one token, an answer of another."""
    values = {
        "input_ids": [1, 2], "policy_mask": [False, True], "logprobs": [0.0, -0.1], "pixel_values": None,
        "grid_thws": [], "reward": 0.0, "response": "", "turns": 1, "finish_reason": "answer",
    }  # fmt: skip
    return Episode(**{**values, **fields})
