from __future__ import annotations

import pytest

from components.evaluate import stage
from components.evaluate.config import Config
from model.boundary.errors import MoonflowError


@pytest.mark.parametrize("inputs", [{}, {"import_checkpoint": "s3://bucket/runs/base/mid_train/3"}])
def test_an_evaluation_without_a_trained_checkpoint_is_one_line(inputs: dict[str, str]) -> None:
    with pytest.raises(MoonflowError, match="no checkpoint to measure: give it that of vit_pretrain or"):
        stage.run(Config(), {"data": "s3://bucket/runs/base/prepare_data/0", **inputs}, None)  # type: ignore[arg-type]
