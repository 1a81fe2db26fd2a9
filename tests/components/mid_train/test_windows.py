from __future__ import annotations

import pytest

from components.mid_train.config import Config
from components.mid_train.stage import shapes
from model.errors import MoonflowError


def test_every_context_step_has_as_many_tokens() -> None:
    assert shapes(Config(steps=9, context_steps="2,4", rows=1), 256) == [(512, 2, 5), (1024, 1, 4)]
    assert shapes(Config(steps=10, context_steps="1.5", rows=3), 256) == [(384, 3, 10)]
    assert shapes(Config(steps=10, context_steps="8,64", rows=64), 4096) == [(32_768, 512, 5), (262_144, 64, 5)]


@pytest.mark.parametrize("steps", ["", "2,", "a", "1,2", "4,2", "2,2", "0.5", "2;4"])
def test_a_context_that_does_not_grow_is_refused(steps: str) -> None:
    with pytest.raises(MoonflowError, match=r"context_steps.*growing factors above 1"):
        Config.parse({"context_steps": steps}, "step mid_train")


def test_fewer_steps_than_contexts_are_refused() -> None:
    with pytest.raises(MoonflowError, match="steps 1: context_steps 2,4 needs one for each"):
        Config.parse({"steps": 1}, "step mid_train")
