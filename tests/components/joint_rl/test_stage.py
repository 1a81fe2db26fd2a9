from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from components.joint_rl import stage
from components.joint_rl.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.data.families import FAMILIES
from model.data.samples.shards import write_shard
from model.evals.answer_room import need_more
from model.network.multimodal import KimiK25
from model.rl import outcome_training
from model.rl.trainer import RLTrainer
from model.rollout.embedded import EmbeddedEngine
from tests.step_services import FolderServices

CONFIG = Config(
    iterations=2, prompts_per_iteration=4, samples_per_prompt=2, learning_rate=1e-3, max_new_tokens=48,
    checkpoint_every=1, modalities="text,image", seed=1,
)  # fmt: skip


@pytest.mark.parametrize("precision", ["full", "int4"])
def test_joint_rl_covers_abilities_and_modalities_and_ends_complete(
    rl_inputs: dict[str, str], tmp_path: Path, precision: str
) -> None:
    services = FolderServices(tmp_path)
    config = CONFIG.model_copy(update={"expert_precision": precision})
    output = stage.run(config, rl_inputs, services)
    assert list(services.files) == [f"episodes/round-0000{t}.html" for t in (1, 2)]
    assert [complete for *_, complete in services.saved] == [False, True] and output == tmp_path / "saved-1"
    assert (output / "training_state.json").is_file() and load_model(output) is not None
    seen = {key for row in services.logged.values() for key in row}
    assert {f"reward/{name}" for name in ("mean", "knowledge", "coding", "agentic", "text", "image")} <= seen
    assert [row["toggle/budget_phase"] for row in services.logged.values()] == [1.0, 1.0]
    assert list(services.logged.values())[-1]["tokens/seen"] > 0
    assert all(row.get("rollout/mismatch_max", 0.0) < 1e-3 for row in services.logged.values())


def test_with_a_staleness_it_samples_from_a_copy_of_the_published_weights(
    rl_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, trained, copies = FolderServices(tmp_path), set[int](), set[int]()
    switch = EmbeddedEngine.switch_model

    class Trainer(RLTrainer):
        async def publish_weights(self) -> None:
            await super().publish_weights()
            trained.update(parameter.data_ptr() for parameter in self.model.parameters())

    def switched(engine: EmbeddedEngine, model: KimiK25) -> None:
        copies.update(parameter.data_ptr() for parameter in model.parameters())
        switch(engine, model)

    monkeypatch.setattr(outcome_training, "RLTrainer", Trainer)
    monkeypatch.setattr(EmbeddedEngine, "switch_model", switched)
    config = CONFIG.model_copy(update={"iterations": 3, "max_staleness": 1, "expert_precision": "int4"})
    stage.run(config, rl_inputs, services)
    rows = list(services.logged.values())
    assert len(rows) == 3 and all(row["staleness/max"] <= 1 and row["episodes/failed"] == 0 for row in rows)
    # The second round begins beside the first one, whose update it does not have yet.
    assert rows[0]["staleness/max"] == 0 and rows[1]["staleness/max"] == 1 and rows[1]["staleness/mean"] > 0
    assert all(row.get("rollout/mismatch_max", 0.0) < 1e-3 for row in rows)
    assert copies and trained and not copies & trained


def test_families_whose_answers_need_more_room_are_no_prompts_and_named_in_one_line(
    rl_inputs: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    families = ["image_program", "image_program_image", "array_tool", "fact_qa", "wide_search", "mine"]
    assert need_more(families, 48) == ["image_program", "image_program_image"]
    assert need_more(families, 200) == [], "a swarm's are left out anyway; a user's own have no suite"
    assert need_more(families, 16) == ["array_tool", "image_program", "image_program_image"]

    config = CONFIG.model_copy(update={"iterations": 1, "max_new_tokens": 16, "ptx_weight": 0.0})
    services = FolderServices(tmp_path / "some")
    stage.run(config, rl_inputs, services)
    (row,) = services.logged.values()
    assert {name for name in row if name.startswith("reward/")} >= {"reward/knowledge"}
    assert "reward/coding" not in row and "reward/agentic" not in row
    told = [record.message for record in caplog.records if "no prompts of" in record.message]
    assert told == ["no prompts of array_tool, sub_search: their answers need more than max_new_tokens = 16"]
    with pytest.raises(MoonflowError, match="no task of modality image or text .* apart from .*fact_qa.*wide_search"):
        stage.run(config.model_copy(update={"max_new_tokens": 4}), rl_inputs, FolderServices(tmp_path / "none"))


def test_tasks_that_cannot_be_asked_are_failed_episodes_up_to_the_steps_share(
    rl_inputs: dict[str, str], tmp_path: Path
) -> None:
    """One family of the prompts has nothing but empty samples."""
    data = tmp_path / "data"
    shutil.copytree(rl_inputs["data"], data)
    empty = (replace(FAMILIES["fact_qa"].sample(0, "train", n), messages=[]) for n in range(12))
    (data / "train" / "fact_qa-00000.tar").write_bytes(write_shard(empty))
    index = json.loads((data / "index.json").read_text())
    index["families"] = {name: index["families"][name] for name in ("fact_qa", "array_tool", "sub_search")}
    (data / "index.json").write_text(json.dumps(index))
    config = CONFIG.model_copy(update={"ptx_weight": 0.0, "modalities": "text"})
    inputs = {**rl_inputs, "data": str(data)}

    def run(name: str, share: float) -> FolderServices:
        services = FolderServices(tmp_path / name)
        stage.run(config.model_copy(update={"max_failed_episodes": share}), inputs, services)
        return services

    failed = sum(row["episodes/failed"] for row in run("whole", 0.5).logged.values())
    assert 0 < failed < 16
    with pytest.raises(MoonflowError, match="max_failed_episodes = 0.1; the first: fact_qa/.*nothing to ask"):
        run("short", 0.1)
