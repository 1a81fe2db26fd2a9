"""RL on a user's tasks, joint and with a swarm: the page's own and broken ones, in a run that is also killed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from components.joint_rl import stage
from components.joint_rl.config import Config
from components.parl import stage as parl
from components.parl.config import Config as SwarmConfig
from components.visual_rl.config import Config as VisualConfig
from model.boundary.errors import MoonflowError
from model.codec.tokenizer import Tokenizer
from tests.rl.tasks.user_tasks import HERE
from tests.step_services import FolderServices, Killed
from tests.training import model_that_ends_its_turns, save_checkpoint

PAGE = Path(__file__).parents[3] / "model" / "rl" / "tasks" / "README.md"
SMALL = {"prompts_per_iteration": 4, "samples_per_prompt": 2, "learning_rate": 1e-3, "max_new_tokens": 48, "seed": 1}


@pytest.fixture(scope="module")
def inputs(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tasks, and a model whose answers are judged."""
    folder = tmp_path_factory.mktemp("parent")
    save_checkpoint(folder, model_that_ends_its_turns(Tokenizer.load(data_folder)), data_folder, None, {})
    return {"data": str(data_folder), **dict.fromkeys(("parent", "policy", "sub_agents"), str(folder))}


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The task of the page, in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "sky.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return "sky:Stars"


def test_the_page_is_short() -> None:
    assert len(PAGE.read_text().splitlines()) <= 60


def test_the_task_of_the_page_trains(sky: str, inputs: dict[str, str], tmp_path: Path) -> None:
    services = FolderServices(tmp_path / "run")
    config = Config(**SMALL, iterations=1, tasks=f"{sky}=0.5", modalities="text", ptx_weight=0.0)
    stage.run(config, inputs, services)
    assert services.saved[-1][2] and not services.warnings
    rows = list(services.logged.values())
    assert all("reward/task/Stars" in row and row["episodes/failed"] == 0.0 for row in rows)
    assert all("reward/knowledge" in row or "reward/coding" in row for row in rows), "the data has its share too"


def test_broken_tasks_cost_no_other_and_a_killed_run_goes_on_with_the_same_prompts(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    tasks = ("Even=0.25", "RaisesVerdict=0.25", "HighScore=0.125", "RaisesPrompt=0.125", "NoPrompts=0.125")
    text = ", ".join(f"{HERE}:{task}" for task in tasks)
    config = Config(**SMALL | {"prompts_per_iteration": 8, "samples_per_prompt": 4}, iterations=4, tasks=text,
                    checkpoint_every=2, ptx_weight=0.0, modalities="text")  # fmt: skip
    services = FolderServices(tmp_path / "whole")
    stage.run(config, inputs, services)
    lines = "\n".join(services.warnings)
    for name, why in (
        ("RaisesVerdict", "RuntimeError: the judge is away"),
        ("RaisesPrompt", "no prompt at all"),
        ("NoPrompts", r"count\('train'\) is 0"),
    ):
        assert re.search(f"task {HERE}:{name} is passed over from prompt .*{why}", lines), lines
    rows = list(services.logged.values())
    assert rows[0]["episodes/failed/RaisesVerdict"] > 4 and "episodes/failed/RaisesVerdict" not in rows[-1]
    assert "reward/task/Even/length" in rows[-1] and "reward/task/RaisesVerdict" not in rows[0]

    killed = FolderServices(tmp_path / "again", kill_at=3)
    with pytest.raises(Killed):
        stage.run(config, inputs, killed)
    resumed = FolderServices(tmp_path / "again")
    stage.run(config, inputs, resumed)
    assert list(resumed.logged) == [3, 4]
    for round_, row in resumed.logged.items():
        for name, value in services.logged[round_].items():
            assert name.startswith(("seconds/", "tokens/s")) or row[name] == value, name


def test_a_swarm_trains_on_tasks_too_and_the_broken_ones_cost_no_other(
    sky: str, inputs: dict[str, str], tmp_path: Path
) -> None:
    bad = ("RaisesVerdict=0.25", "HighScore=0.125", "HangsVerdict=0.125", "HangsPrompt=0.125")
    config = SwarmConfig(
        iterations=1, prompts_per_iteration=8, samples_per_prompt=3, learning_rate=1e-3, critical_steps=3,
        max_new_tokens=8, tasks=", ".join([f"{sky}=0.25", *(f"{HERE}:{task}" for task in bad)]), ptx_weight=0.0,
        checkpoint_every=0, seed=1,
    )  # fmt: skip
    services = FolderServices(tmp_path / "run")
    parl.run(config, inputs, services)
    (row,) = services.logged.values()
    assert services.saved[-1][2] and "reward/task/Stars" in row and "reward/perf" in row
    assert row["episodes/failed/RaisesVerdict"] == 6 and row["episodes/failed"] >= 9
    assert row["episodes/failed/Stars"] == 0.0 and row["prompts/failed/HangsPrompt"] > 0
    assert "reward/task/RaisesVerdict" not in row and "reward/agentic" in row, "the data has its share too"
    lines = "\n".join(services.warnings)
    for name, why in (("RaisesVerdict", "the judge is away"), ("HangsPrompt", "has hung 3 times")):
        assert re.search(f"task {HERE}:{name} is passed over from prompt .*{why}", lines), lines


@pytest.mark.parametrize(
    ("tasks", "told"),
    [(f"{HERE}:Sey=1", "did you mean Say"), ("nowhere:Say=1", "no module nowhere"), (f"{HERE}:NoVerifier=1", "verify")],
)
def test_a_task_that_is_not_there_ends_the_step_before_it_trains(
    inputs: dict[str, str], tmp_path: Path, tasks: str, told: str
) -> None:
    services = FolderServices(tmp_path)
    with pytest.raises(MoonflowError, match=told):
        stage.run(Config(**SMALL, tasks=tasks), inputs, services)
    assert not services.logged


@pytest.mark.parametrize("tasks", ["sky:Stars", "Stars=0.2", "a:T=0.6,b:U=0.6"])
def test_a_wrong_text_is_refused_by_the_schema(tasks: str) -> None:
    for config, step in ((Config, "step joint_rl"), (VisualConfig, "step visual_rl"), (SwarmConfig, "step parl")):
        with pytest.raises(MoonflowError, match=f"{step}: parameter 'tasks'"):
            config.parse({"tasks": tasks}, step)
