from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.parl import stage
from components.parl.config import Config
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.swarm import training
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from tests.golden.recipe import seeded
from tests.step_services import FolderServices

CONFIG = Config(
    iterations=4, prompts_per_iteration=1, samples_per_prompt=2, learning_rate=1e-3, critical_steps=4,
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

    # One completion of each at a time, whose sizes follow their queues: the same episodes and weights, bit for bit.
    narrow = FolderServices(tmp_path / "narrow")
    again = stage.run(CONFIG.model_copy(update={"completions_at_once": 2}), rl_inputs, narrow)
    for t, row in narrow.logged.items():
        assert {"queue_s/orchestrator", "pool_size/orchestrator"} <= set(row)
        sizes = {name: value for name, value in row.items() if name.startswith("pool_size/")}
        assert sum(sizes.values()) == 2 and seeded(row) == seeded(services.logged[t]) | sizes
    first, second = (load_model(folder).state_dict() for folder in (output, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_larger_sub_agents_take_over_as_the_schedule_says(
    rl_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds with the first ones, two with the others; the same weights here, so nothing else changes."""
    played: list[tuple[Any, SwarmLimits]] = []

    async def remembering(engine: Any, sub_engine: Any, *others: Any, **values: Any) -> Any:
        played.append((sub_engine, values["limits"]))
        return await run_swarm_episode(engine, sub_engine, *others, **values)

    monkeypatch.setattr(training, "run_swarm_episode", remembering)
    later = {"larger_sub_agents": rl_inputs["sub_agents"], "larger_from": 0.5, "larger_until": 0.5}
    config = CONFIG.model_copy(update=later | {"window": 240, "sub_agent_window": 200, "sub_agent_steps": 2})
    config = config.model_copy(update={"ptx_weight": 0.0})
    stage.run(config, rl_inputs, FolderServices(tmp_path))
    speaking = [engine for engine, _ in played]
    assert len(speaking) == 8 and len(set(map(id, speaking[:4]))) == len(set(map(id, speaking[4:]))) == 1
    assert speaking[0] is not speaking[-1]
    assert {limits for _, limits in played} == {SwarmLimits(4, 2, 160, 240, 200)}


def test_bad_families_and_windows_are_refused_in_one_line(rl_inputs: dict[str, str], tmp_path: Path) -> None:
    for values, told in (
        ({"families": "wide_search,world_wid"}, "'world_wid' is no family for a swarm; did you mean world_wide"),
        ({"larger_from": 0.9}, "larger_from is after larger_until"),
        ({"completions_at_once": 1}, "give 0, or 2 or more"),
    ):
        with pytest.raises(MoonflowError, match=told):
            Config.parse(values, "parl")
    with pytest.raises(MoonflowError, match="parl.window is 99999, and the model has a context of"):
        stage.run(CONFIG.model_copy(update={"window": 99999}), rl_inputs, FolderServices(tmp_path))
    with pytest.raises(MoonflowError, match="no train shards of family 'world_wide'"):
        stage.run(CONFIG.model_copy(update={"families": "world_wide"}), rl_inputs, FolderServices(tmp_path))


def test_swarms_play_while_the_orchestrator_learns_and_get_its_new_weights(
    rl_inputs: dict[str, str], tmp_path: Path
) -> None:
    services = FolderServices(tmp_path)
    stage.run(CONFIG.model_copy(update={"iterations": 3, "max_staleness": 1}), rl_inputs, services)
    rows = list(services.logged.values())
    assert [row["swarm/auxiliary_scale"] for row in rows] == pytest.approx([1, 0.5, 0])
    assert all(row["staleness/max"] <= 1 and row["episodes/failed"] == 0 for row in rows)
    # The second round begins beside the first one, whose update it does not have yet.
    assert rows[0]["staleness/max"] == 0 and rows[1]["staleness/max"] == 1 and rows[1]["staleness/mean"] > 0
    assert [complete for *_, complete in services.saved] == [True]
