"""Steps that sample with SGLang replicas end as they do with the embedded engine; servers that really generate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from components.joint_rl import stage as joint_rl
from components.joint_rl.config import Config as JointRL
from components.parl import stage as parl
from components.parl.config import Config as Parl
from model.checkpoint.load import load_model
from model.rl import outcome_training
from tests.odd_rewards import run_odd_episode
from tests.sglang_replica import SGLangReplica
from tests.step_services import FolderServices

RL = JointRL(
    iterations=2, prompts_per_iteration=3, samples_per_prompt=2, learning_rate=1e-3, max_new_tokens=48,
    checkpoint_every=0, seed=1, ptx_weight=0.0,
)  # fmt: skip
SWARM = Parl(
    iterations=1, prompts_per_iteration=1, samples_per_prompt=2, learning_rate=1e-3, critical_steps=3,
    checkpoint_every=0, seed=1,
)  # fmt: skip


@pytest.fixture
def replicas(rl_inputs: dict[str, str]) -> Iterator[list[SGLangReplica]]:
    parent = Path(rl_inputs["parent"])
    with SGLangReplica(parent) as one, SGLangReplica(parent) as other:
        yield [one, other]


def asking(replicas: list[SGLangReplica], **values: Any) -> dict[str, Any]:
    return {"engine": "sglang", "endpoints": ",".join(replica.url for replica in replicas), **values}


def same(one: Path, other: Path) -> bool:
    """The same weights, bit for bit."""
    mine, theirs = load_model(one).state_dict(), load_model(other).state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_two_rounds_of_joint_rl_end_with_the_same_bits_although_a_replica_is_killed_in_between(
    rl_inputs: dict[str, str], replicas: list[SGLangReplica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_training, "run_episode", run_odd_episode)
    own, remote = FolderServices(tmp_path / "own"), FolderServices(tmp_path / "remote")
    expected = joint_rl.run(RL, rl_inputs, own)

    def kill_after_the_first_round(step: int) -> None:
        if step == 1:
            replicas[0].kill()

    remote.on_update = kill_after_the_first_round
    shared = tmp_path / "shared"
    config = RL.model_copy(update=asking(replicas, weights_folder=str(shared)))
    output = joint_rl.run(config, rl_inputs, remote)
    assert same(expected, output) and not same(output, Path(rl_inputs["parent"]))
    for round_ in (1, 2):
        mine, theirs = remote.logged[round_], own.logged[round_]
        assert mine["reward/mean"] == theirs["reward/mean"] and mine["episodes/failed"] == 0.0
        assert abs(mine["rollout/mismatch_kl"]) <= 1e-3  # of trainer and sampler, over all trained tokens
    seeds = Counter(answer.seed for replica in replicas for answer in replica.served)
    assert seeds and set(seeds.values()) == {1}  # every turn of every episode once
    assert len({answer.version for answer in replicas[1].served}) == 2  # the weights of each round
    assert not list(shared.rglob("*.safetensors"))  # nothing is left behind


def test_rounds_in_flight_lose_nothing_when_weights_come_and_a_replica_dies(
    rl_inputs: dict[str, str], replicas: list[SGLangReplica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round is in flight when the first one's weights are pushed and when a replica is killed."""
    monkeypatch.setattr(outcome_training, "run_episode", run_odd_episode)
    for replica in replicas:
        replica.token_s = 0.003
    services = FolderServices(tmp_path)
    services.on_update = lambda step: replicas[0].kill() if step == 1 else None
    config = RL.model_copy(update={**asking(replicas), "iterations": 3, "max_staleness": 1})
    assert load_model(joint_rl.run(config, rl_inputs, services)) is not None
    rows = services.logged
    assert [row["episodes/failed"] for row in rows.values()] == [0, 0, 0]
    assert rows[1]["staleness/max"] == 0 and max(row["staleness/max"] for row in rows.values()) == 1
    assert replicas[1].pushes == 4
    assert all(row.get("rollout/mismatch_kl", 0.0) < 0.5 for row in rows.values())


def test_parl_asks_one_set_of_replicas_as_the_orchestrator_and_another_as_its_sub_agents(
    rl_inputs: dict[str, str], replicas: list[SGLangReplica], tmp_path: Path
) -> None:
    expected = parl.run(SWARM, rl_inputs, FolderServices(tmp_path / "own"))
    lead, help_ = replicas
    config = SWARM.model_copy(update=asking([lead], sub_agent_endpoints=help_.url))
    output = parl.run(config, rl_inputs, FolderServices(tmp_path / "remote"))
    assert same(expected, output)
    assert lead.served and lead.pushes == 2 and help_.pushes == 1


def test_videos_are_named_and_passed_over(rl_inputs: dict[str, str], replicas: list[SGLangReplica], tmp_path: Path):
    services = FolderServices(tmp_path)
    config = RL.model_copy(update=asking(replicas, modalities="text,video", iterations=1))
    joint_rl.run(config, rl_inputs, services)
    assert services.warnings == ["engine 'sglang' does not take video: it is not trained on"]
    assert "reward/text" in services.logged[1]
