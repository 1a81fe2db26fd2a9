from __future__ import annotations

from pathlib import Path

import pytest

from components.joint_rl import stage
from components.joint_rl.config import Config
from components.parl import stage as parl_stage
from components.parl.config import Config as ParlConfig
from model.hf import load_model
from tests.rl.conftest import Around

CONFIG = Config(
    iterations=2, prompts_per_iteration=4, samples_per_prompt=2, learning_rate=1e-3, max_new_tokens=8,
    checkpoint_every=1, modalities="text,image", seed=1,
)  # fmt: skip


@pytest.mark.parametrize("precision", ["full", "int4"])
def test_joint_rl_covers_abilities_and_modalities_and_ends_complete(
    data_folder, checkpoint, tmp_path: Path, precision: str
) -> None:
    around = Around(tmp_path)
    around.work.mkdir()
    config = CONFIG.model_copy(update={"expert_precision": precision})
    output = stage.run(config, {"data": str(data_folder), "parent": str(checkpoint)}, around)
    assert around.saved == [(0, False), (1, True)] and output == tmp_path / "saved-1"
    assert (output / "training_state.json").is_file() and load_model(output) is not None
    seen = {key for row in around.logged for key in row}
    assert {f"reward/{name}" for name in ("mean", "knowledge", "coding", "agentic", "text", "image")} <= seen
    assert [row["toggle/budget_phase"] for row in around.logged] == [1.0, 1.0]
    assert around.logged[-1]["tokens/seen"] > 0
    assert all(row.get("rollout/mismatch_max", 0.0) < 1e-3 for row in around.logged)


class _Asked(Exception):
    pass


@pytest.mark.parametrize("step", [stage, parl_stage], ids=["joint_rl", "parl"])
@pytest.mark.parametrize("sandbox", ["strict", "unsafe"])
def test_the_parameter_sandbox_reaches_the_tools(
    data_folder, checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step, sandbox: str
) -> None:
    def tools(*, sandbox: str) -> None:
        raise _Asked(sandbox)

    monkeypatch.setattr(step, "Toolset", tools)
    config = (Config if step is stage else ParlConfig)(sandbox=sandbox)
    inputs = {"data": data_folder, "parent": checkpoint, "policy": checkpoint, "sub_agents": checkpoint}
    with pytest.raises(_Asked, match=sandbox):
        step.run(config, {name: str(path) for name, path in inputs.items()}, Around(tmp_path))
