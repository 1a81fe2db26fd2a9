"""What an arm of the swarm ablation trains and measures, with a model of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.swarm_arm import stage
from components.swarm_arm.config import Config
from model.rl.ptx import PRETRAINING
from model.swarm.ways import AGENTS, EASY_AGENTS, SWARM
from tests.step_services import FolderServices

CONFIG = Config(
    arm="forced", seed=1, families="wide_search", iterations=2, prompts_per_iteration=1, samples_per_prompt=2,
    critical_steps=3, sub_agent_steps=2, max_new_tokens=16, window=256, sub_agent_window=256, ptx_weight=0.0, sizes="2",
    tasks=1, timed_tasks=1, measured_steps=3, latency=0.0, max_failed_episodes=0.5,
)  # fmt: skip


class Services(FolderServices):
    """Keeps the arm's result, which a step publishes beside its checkpoints."""

    def publish(self, folder: Any, *_: Any, **fields: Any) -> Any:
        if "extra" not in fields:
            return super().publish(folder, *_)
        self.result = fields["extra"]["ablation"]
        return self

    @property
    def newest(self) -> Any:
        return type("Newest", (), {"tokens_seen": 0})


def test_an_arm_trains_from_its_start_and_measures_the_ways_it_is_compared_in(
    rl_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    pretraining: list[set[str]] = []
    train = stage.train_orchestrator

    def noted(model: Any, data: Any, task: Any, *others: Any, **more: Any) -> None:
        modes.append(task.mode)
        pretraining.append(set(task.ptx_mixture))
        train(model, data, task, *others, **more)

    monkeypatch.setattr(stage, "train_orchestrator", noted)
    services = Services(tmp_path)
    stage.run(CONFIG, {"data": rl_inputs["data"], "parent": rl_inputs["policy"]}, services)  # type: ignore[arg-type]
    assert modes == ["must_delegate"] and [complete for *_, complete in services.saved] == [False]
    # Half of wide_search delegates, whatever an arm rewards. The step parl has it in its pre-training loss.
    assert pretraining == [set(PRETRAINING) - {"wide_search"}] and "wide_search" in PRETRAINING
    rows = services.result["table"]
    assert [(row["family"], row["way"]) for row in rows] == [
        *(("world_easy", way) for way in (SWARM, *EASY_AGENTS)),
        *(("world_wide", way) for way in (SWARM, *AGENTS, "must_delegate")),
    ]  # fmt: skip
    timed = {row["way"] for row in rows if "seconds" in row}
    assert SWARM in timed and len(timed) == 2, "the swarm and the best single agent, one task after another"
    assert services.result["summary"]["wall_clock_ratio"] > 0
    assert services.result["halved"] == [] and services.result["windows"] == [256, 256]
    assert {"f1/single/world_wide/n2", "swarm/easy_overhead", "episodes/failed", "episodes/lost"} <= set(
        services.logged[2]
    )
    assert {"reward/perf", "reward/parallel"} <= set(services.logged[1])
