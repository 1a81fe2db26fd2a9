from __future__ import annotations

from pathlib import Path

import pytest

from components.parl import stage
from components.parl.config import Config
from tests.rl.conftest import Around

CONFIG = Config(
    iterations=4, prompts_per_iteration=1, samples_per_prompt=2, learning_rate=1e-3, critical_steps=4, auxiliary=0.3,
    checkpoint_every=0, seed=1,
)  # fmt: skip


def test_parl_anneals_to_the_outcome_alone_within_the_run(data_folder, checkpoint, tmp_path: Path) -> None:
    around = Around(tmp_path)
    around.work.mkdir()
    inputs = {"data": str(data_folder), "policy": str(checkpoint), "sub_agents": str(checkpoint)}
    output = stage.run(CONFIG, inputs, around)
    assert around.saved == [(0, True)] and output == tmp_path / "saved-0"
    scales = [row["swarm/auxiliary_scale"] for row in around.logged]
    assert scales == pytest.approx([1, 2 / 3, 1 / 3, 0]) and scales[-1] == 0.0
    assert {"swarm/parallelism", "swarm/critical_steps", "swarm/subtasks"} <= set(around.logged[0])
    assert {"reward/parallel", "reward/finish", "reward/perf"} <= set(around.logged[0])
    assert all(row["swarm/critical_steps"] <= CONFIG.critical_steps for row in around.logged)
