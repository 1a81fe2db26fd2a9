from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.parl import stage
from components.parl.config import Config
from components.parl.traces import ROUNDS, RoundTraces, shown_rounds
from model.parallel.ranks import Ranks
from model.rl.groups import Group
from model.rl.trainer import RLSettings
from model.swarm.orchestrator import SwarmEpisode
from model.swarm.reward import SwarmReward
from model.swarm.trace import Trace
from tests.samples import make_episode, make_sample
from tests.step_services import FolderServices
from tests.swarm.test_trace import recorded

REWARD = SwarmReward(parallel=0.4, finish=0.0, anneal_iterations=10)


def settings(iterations: int, every: int) -> RLSettings:
    return RLSettings(iterations, 1, 2, 1e-3, checkpoint_every=every)


def episode(reward: float, parallelism: float = 0.0, answer: str = "") -> SwarmEpisode:
    metrics = {
        "parallelism": parallelism,
        "critical_steps": 3.0,
        "subtasks_assigned": 0.0,
        "subtasks_finished": 0.0,
        "sub_agents_failed": 0.0,
    }
    played = make_episode(reward=reward, metrics=metrics)
    return SwarmEpisode(**vars(played), trace=recorded(2).model_copy(update={"reward": reward, "answer": answer}))


@pytest.mark.parametrize(
    ("iterations", "every", "shown"),
    [(6, 3, [3, 6]), (6, 0, [6]), (7, 3, [3, 6, 7]), (1, 0, [1]), (100, 1, list(range(10, 101, 10)))],
)
def test_the_rounds_that_are_saved_are_shown_up_to_a_number(iterations: int, every: int, shown: list[int]) -> None:
    assert shown_rounds(settings(iterations, every)) == shown and len(shown) <= ROUNDS


def test_the_best_and_the_worst_episode_of_a_shown_round_are_kept(tmp_path: Path) -> None:
    """The best one is the one that is trained on as such: parallel work counts while its weight does."""
    services = FolderServices(tmp_path)
    traces = RoundTraces(services, settings(6, 3), REWARD)  # type: ignore[arg-type]
    played = [
        episode(0.9, answer="first"),
        episode(0.8, parallelism=4.0, answer="parallel"),
        episode(0.1, answer="low"),
    ]
    groups = [Group(make_sample(), [*played[:1]], [0.0]), Group(make_sample(), [*played[1:]], [0.0, 0.0])]
    traces(2, groups)
    assert services.files == {}
    traces(3, groups)
    found = {Path(path).name: Trace.from_json(text) for path, text in services.files.items() if path.endswith("json")}
    assert {name: trace.answer for name, trace in found.items()} == {
        "round-0003-best.json": "parallel", "round-0003-worst.json": "low",
    }  # fmt: skip
    best = found["round-0003-best.json"]
    assert best.parts["trained"] == pytest.approx(0.8 + 0.4 * (1 - 2 / 10))
    assert (best.about["round"], best.about["which"], best.reward) == ("3", "best of 3", 0.8)
    assert {path for path in services.files if path.endswith("html")} == {
        "swarm/round-0003-best.html", "swarm/round-0003-worst.html",
    }  # fmt: skip


def test_other_ranks_and_episodes_without_a_trace_keep_nothing(tmp_path: Path) -> None:
    services = FolderServices(tmp_path, ranks=Ranks(rank=1, world=2))
    traces = RoundTraces(services, settings(6, 3), REWARD)  # type: ignore[arg-type]
    traces(3, [Group(make_sample(), [episode(1.0)], [0.0])])
    first = FolderServices(tmp_path)
    RoundTraces(first, settings(6, 3), REWARD)(3, [Group(make_sample(), [make_episode()], [0.0])])  # type: ignore[arg-type]
    assert services.files == first.files == {}


def test_a_trace_that_is_not_shown_does_not_travel_between_ranks(tmp_path: Path) -> None:
    traces = RoundTraces(FolderServices(tmp_path), settings(6, 3), REWARD)  # type: ignore[arg-type]
    assert traces.carried(2, episode(1.0)).trace is None and traces.carried(3, episode(1.0)).trace is not None


def test_the_step_keeps_traces_of_real_episodes(rl_inputs: dict[str, str], tmp_path: Path) -> None:
    services = FolderServices(tmp_path)
    values: dict[str, Any] = {"iterations": 1, "prompts_per_iteration": 1, "samples_per_prompt": 2, "critical_steps": 3}
    stage.run(Config(**values, ptx_weight=0.0, checkpoint_every=0, seed=1), rl_inputs, services)  # type: ignore[arg-type]
    assert set(services.files) == {
        f"swarm/round-0001-{n}.{kind}" for n in ("best", "worst") for kind in ("json", "html")
    }
    about = json.loads(services.files["swarm/round-0001-best.json"])["about"]
    assert about["step"] == "step" and about["which"] == "best of 2" and about["task"].startswith("wide_search/")
