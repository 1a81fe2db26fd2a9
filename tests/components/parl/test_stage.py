from __future__ import annotations

from pathlib import Path

import pytest

from components.parl import stage
from components.parl.config import Config
from tests.step_services import FolderServices

CONFIG = Config(
    iterations=4, prompts_per_iteration=1, samples_per_prompt=2, learning_rate=1e-3, critical_steps=4, auxiliary=0.3,
    checkpoint_every=0, seed=1,
)  # fmt: skip


def test_parl_anneals_to_the_outcome_alone_within_the_run(rl_inputs: dict[str, str], tmp_path: Path) -> None:
    services = FolderServices(tmp_path)
    output = stage.run(CONFIG, rl_inputs, services)
    assert [complete for *_, complete in services.saved] == [True] and output == tmp_path / "saved-0"
    scales = [row["swarm/auxiliary_scale"] for row in services.logged.values()]
    assert scales == pytest.approx([1, 2 / 3, 1 / 3, 0]) and scales[-1] == 0.0
    assert {"swarm/parallelism", "swarm/critical_steps", "swarm/subtasks"} <= set(services.logged[1])
    assert {"reward/parallel", "reward/finish", "reward/perf"} <= set(services.logged[1])
    assert all(row["swarm/critical_steps"] <= CONFIG.critical_steps for row in services.logged.values())


def test_swarms_play_while_the_orchestrator_learns_and_get_its_new_weights(
    rl_inputs: dict[str, str], tmp_path: Path
) -> None:
    services = FolderServices(tmp_path)
    stage.run(CONFIG.model_copy(update={"iterations": 3, "max_staleness": 1}), rl_inputs, services)
    rows = list(services.logged.values())
    assert [row["swarm/auxiliary_scale"] for row in rows] == pytest.approx([1, 0.5, 0])
    assert all(row["staleness/max"] <= 1 and row["episodes/failed"] == 0 for row in rows)
    assert [complete for *_, complete in services.saved] == [True]
