"""Joint RL with a judge: one with random weights, and a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.joint_rl import stage
from components.joint_rl.config import Config
from model.boundary.errors import MoonflowError
from model.codec.tokenizer import Tokenizer
from tests.chat_server import Script, chatting, say
from tests.rl.tasks.user_tasks import HERE
from tests.step_services import FolderServices
from tests.tiny_folders import write_training_folder
from tests.training import model_that_ends_its_turns, save_checkpoint

SMALL = {"iterations": 1, "prompts_per_iteration": 2, "samples_per_prompt": 2, "ptx_weight": 0.0, "modalities": "text"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Open questions, and a model that answers at once."""
    data = write_training_folder(tmp_path_factory.mktemp("data"), ("open_answer", "fact_qa"), count=12)
    folder = tmp_path_factory.mktemp("parent")
    save_checkpoint(folder, model_that_ends_its_turns(Tokenizer.load(data)), data, None, {})
    return {"data": str(data), "parent": str(folder)}


def run(folder: Path, inputs: dict[str, str], **given: Any) -> tuple[dict[str, float], FolderServices]:
    services = FolderServices(folder)
    stage.run(Config(**SMALL, **given), inputs, services)
    (row,) = services.logged.values()
    return row, services


def test_a_judge_with_random_weights_costs_no_episode(inputs: dict[str, str], tmp_path: Path) -> None:
    row, services = run(tmp_path, inputs, max_new_tokens=64, tasks=f"{HERE}:Rubrics=1", judge="parent")
    assert row["episodes/failed"] == 0.0 and services.saved[-1][2]
    (told,) = services.warnings
    assert told.startswith("in round 1 none of the judge's 4 verdicts could be read")
    assert row["judge/unread"] == 1.0 and "reward/judge" not in row, "it says nothing"
    assert row["reward/verifiable"] == row["reward/mean"] == row["accuracy/mean"] == 1.0


def test_a_server_judges_and_both_parts_are_logged(inputs: dict[str, str], tmp_path: Path) -> None:
    script = Script(lambda body: say("yes"))
    with chatting(script) as url:
        row, services = run(tmp_path, inputs, tasks=f"{HERE}:Rubrics=1", judge=f"{url}/v1", judge_weight=0.25)
    assert {body["max_tokens"] for body in script.requests} == {2_048} and not services.warnings
    assert (row["reward/verifiable"], row["reward/judge"], row["reward/mean"]) == (1.0, 1.0, 1.25)
    asked = [body["messages"][0]["content"] for body in script.requests]
    assert len(asked) == 4 and all(text.startswith("Question:\n|Say ") for text in asked)
    assert {line for text in asked for line in text.split("\n") if line[:7] == "Rubric:"} <= {
        "Rubric: It is short.", "Rubric: It is kind.", "Rubric: It is true."
    }  # fmt: skip


@pytest.mark.parametrize(("context", "most"), [(600, 300), (32_768, 2_048)])
def test_a_server_that_tells_its_context_keeps_half_of_it_for_the_prompt(
    inputs: dict[str, str], tmp_path: Path, context: int, most: int
) -> None:
    script = Script(lambda body: say("**Yes.**"), models={"data": [{"id": "kimi", "max_model_len": context}]})
    with chatting(script) as url:
        row, _ = run(tmp_path, inputs, tasks=f"{HERE}:Rubrics=1", judge=url)
    assert row["reward/judge"] == 1.0 and {body["max_tokens"] for body in script.requests} == {most}


def test_a_judges_server_gets_its_own_key_and_never_that_of_the_replicas(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONFLOW_ENGINE_KEY", "of-the-replicas")
    monkeypatch.setenv("MOONFLOW_JUDGE_KEY", "of-the-judge")
    script = Script(lambda body: say("yes"))
    with chatting(script) as url:
        row, _ = run(tmp_path, inputs, tasks=f"{HERE}:Rubrics=1", judge=url)
    assert row["reward/judge"] == 1.0 and set(script.keys) == {"Bearer of-the-judge"} and len(script.keys) > 4


def test_a_judge_without_rubrics_is_warned_of(inputs: dict[str, str], tmp_path: Path) -> None:
    row, services = run(tmp_path, inputs, max_new_tokens=16, judge="parent")
    assert services.warnings == ["judge parent has nothing to judge: no task that is asked has a rubric"]
    assert row["reward/verifiable"] == row["reward/mean"]


def test_a_user_in_the_judges_address_is_refused_and_told_where_its_key_goes() -> None:
    with pytest.raises(MoonflowError, match="set MOONFLOW_JUDGE_KEY to its key") as refused:
        Config.parse({"judge": "https://me:hidden@judge.example"}, "step joint_rl")  # pragma: allowlist secret
    assert "hidden" not in str(refused.value) and "judge.example" in str(refused.value)


@pytest.mark.parametrize("judge", ["runs/tiny", "http://judge:1/?key=x", "https://", "Parent"])
def test_what_names_no_judge_is_refused_by_the_schema(judge: str) -> None:
    with pytest.raises(MoonflowError, match="step joint_rl: parameter 'judge'"):
        Config.parse({"judge": judge}, "step joint_rl")
    assert Config(judge="https://judge.example/v1").judge and Config(judge="s3://b/run/sft/3").judge
