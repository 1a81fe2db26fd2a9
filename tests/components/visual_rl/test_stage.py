from __future__ import annotations

from pathlib import Path

import pytest

from components.joint_rl.config import Config as JointConfig
from components.visual_rl import stage
from components.visual_rl.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import read_state
from model.rl.successes import Kept
from tests.step_services import FolderServices

CONFIG = Config(
    iterations=2, prompts_per_iteration=4, samples_per_prompt=2, learning_rate=1e-3, kept_successes=3, seed=1
)


def test_only_images_are_asked_about_and_successes_are_kept(rl_inputs: dict[str, str], tmp_path: Path) -> None:
    services = FolderServices(tmp_path)
    output = stage.run(CONFIG, rl_inputs, services)
    assert len(Kept.of(output)) <= 3 and [complete for *_, complete in services.saved] == [True]
    assert read_state(output)["loop"]["iteration"] == 2 and f"episodes/round-{2:05d}.html" in services.files
    rows = list(services.logged.values())
    assert len(rows) == 2
    for row in rows:
        assert row["reward/image"] == row["reward/mean"] and "reward/text" not in row
        assert {"successes/kept", "successes/new", "toggle/budget_phase", "loss/text"} <= row.keys()


def test_its_parameters_are_those_of_joint_rl_without_judge_and_modalities_and_with_what_is_kept() -> None:
    ours, theirs = Config.model_fields, JointConfig.model_fields
    assert theirs.keys() - ours.keys() == {"modalities", "judge", "judge_weight", "judge_rubrics"}
    assert ours.keys() - theirs.keys() == {"kept_successes", "kept_per_prompt", "kept_reward"}
    assert Config().seed != JointConfig().seed
    with pytest.raises(MoonflowError, match="unknown parameter 'modalities'"):
        Config.parse({"modalities": "text"}, "step visual_rl")
