from __future__ import annotations

from pathlib import Path

import pytest

from components.mid_train.config import Config
from components.mid_train.stage import phases, shapes
from model.boundary.errors import MoonflowError
from model.data.batches.folder import DataFolder
from model.data.order.family_shares import LONG_TEXT, LONG_VISION
from tests.tiny_folders import write_training_folder


def test_every_context_step_has_as_many_tokens() -> None:
    assert shapes(Config(steps=9, context_steps="2,4", rows=1), 256) == [(512, 2, 5), (1024, 1, 4)]
    assert shapes(Config(steps=10, context_steps="1.5", rows=3), 256) == [(384, 3, 10)]
    assert shapes(Config(steps=10, context_steps="8,64", rows=64), 4096) == [(32_768, 512, 5), (262_144, 64, 5)]


def test_the_rate_falls_as_the_context_grows(tmp_path: Path) -> None:
    data = DataFolder(write_training_folder(tmp_path, (*LONG_TEXT, *LONG_VISION), count=1))
    grown = phases(Config(context_steps="2,4,16", learning_rate=0.8), data, 64)
    rates = [(phase.window, phase.optimization.learning_rate) for phase in grown]
    assert rates == [(128, 0.8), (256, 0.4), (1024, 0.1)]


@pytest.mark.parametrize("steps", ["", "2,", "a", "1,2", "4,2", "2,2", "0.5", "2;4"])
def test_a_context_that_does_not_grow_is_refused(steps: str) -> None:
    with pytest.raises(MoonflowError, match=r"context_steps.*growing factors above 1"):
        Config.parse({"context_steps": steps}, "step mid_train")


def test_fewer_steps_than_contexts_are_refused() -> None:
    with pytest.raises(MoonflowError, match="steps 1: context_steps 2,4 needs one for each"):
        Config.parse({"steps": 1}, "step mid_train")
