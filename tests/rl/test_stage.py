from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from components.joint_rl import stage
from components.joint_rl.config import Config
from components.parl import stage as parl_stage
from components.parl.config import Config as ParlConfig
from model.data.families import FAMILIES
from model.data.shards import write_shard
from model.errors import MoonflowError
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


def test_tasks_that_cannot_be_asked_are_failed_episodes_up_to_the_steps_share(
    data_folder, checkpoint, tmp_path: Path
) -> None:
    """One family of the prompts has nothing but empty samples."""
    data = tmp_path / "data"
    shutil.copytree(data_folder, data)
    empty = (replace(FAMILIES["fact_qa"].sample(0, "train", n), messages=[]) for n in range(12))
    (data / "fact_qa.tar").write_bytes(write_shard(empty))
    index = json.loads((data / "index.json").read_text())
    index["families"] = {name: index["families"][name] for name in ("fact_qa", "array_tool", "sub_search")}
    (data / "index.json").write_text(json.dumps(index))
    config = CONFIG.model_copy(update={"ptx_weight": 0.0, "modalities": "text"})
    inputs = {"data": str(data), "parent": str(checkpoint)}

    def run(name: str, share: float) -> Around:
        around = Around(tmp_path / name)
        around.work.mkdir(parents=True)
        stage.run(config.model_copy(update={"max_failed_episodes": share}), inputs, around)
        return around

    failed = sum(row["episodes/failed"] for row in run("whole", 0.5).logged)
    assert 0 < failed < 16
    with pytest.raises(MoonflowError, match="max_failed_episodes = 0.1; the first: fact_qa/.*nothing to ask"):
        run("short", 0.1)


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
