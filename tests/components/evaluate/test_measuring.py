"""Which checkpoints an evaluation loads: every pipeline's, and the newest one as sub-agents without those of PARL."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from components.evaluate import measuring
from components.evaluate.config import Config
from components.runtime.steps import UNTRAINED
from model.codec.image import ImageConfig
from model.evals.scorer import Evaluation
from model.network.multimodal import KimiK25
from model.rollout.embedded import EmbeddedEngine
from tests.step_services import FolderServices
from tests.tiny_folders import tiny_tokenizer, write_checkpoint


@pytest.mark.parametrize("steps", [("rejection_sft",), ("visual_rl", "rejection_sft")])
def test_fine_tuning_on_successes_is_measured_as_any_other_step(
    steps: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {step: str(write_checkpoint(tmp_path / step, seed=seed)) for seed, step in enumerate(steps, 1)}
    evaluation = Evaluation(tiny_tokenizer(), ImageConfig(), None, 0.0, 0)  # type: ignore[arg-type]
    asked: list[KimiK25] = []

    def engine(model: KimiK25, rows: int) -> EmbeddedEngine:
        asked.append(model)
        return EmbeddedEngine(model, rows)

    monkeypatch.setattr(measuring, "measuring_engine", engine)
    services = FolderServices(tmp_path / "run")
    with ExitStack() as opened:
        made = measuring.Measuring(Config(), inputs, services, None, evaluation, opened)  # type: ignore[arg-type]
        assert made.outcomes(UNTRAINED, {}, []) == {}
        last = made.model("rejection_sft").state_dict()
    untrained, sub_agents = (model.state_dict() for model in asked)
    same = [all(torch.equal(value, found[name]) for name, value in last.items()) for found in (untrained, sub_agents)]
    assert same == [False, True]
