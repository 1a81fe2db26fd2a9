"""evaluate -> promote -> serve through the real store, MLflow, Git and HTTP, on checkpoints with random weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import mlflow
import pytest

from components.runtime import manifest as manifests
from components.runtime.manifest import Manifest
from components.runtime.step import run_step
from components.runtime.store import ObjectStore
from components.steps import TRAINING_STEPS
from model.errors import MoonflowError
from tests.tiny_folders import write_checkpoint, write_data_folder

pytestmark = pytest.mark.services

CHEAP = {"samples": 4, "samples_intermediate": 2, "floors": ""}


@pytest.fixture
def inputs(step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A run whose data and six checkpoints stand in the store; URIs by step."""
    monkeypatch.setenv("MOONFLOW_GITOPS_REPO", str(tmp_path / "gitops.git"))
    store = ObjectStore.from_env()

    def publish(step: str, folder: Path, kind: str) -> str:
        made = manifests.publish(
            store, f"{step_environment}/{step}/0", folder, run_id=step_environment, step=step, index=0, kind=kind
        )
        return made.uri

    uris = {"data": publish("prepare_data", write_data_folder(tmp_path / "data"), "data")}
    for seed, step in enumerate(TRAINING_STEPS):
        uris[step] = publish(step, write_checkpoint(tmp_path / step, seed), "checkpoint")
    return uris


def evaluated(inputs: dict[str, str], **config: object) -> Manifest:
    return run_step("evaluate", {**CHEAP, **config}, inputs)


def test_from_checkpoints_to_an_answer_over_http(inputs: dict[str, str], step_environment: str, tmp_path: Path):
    evals = evaluated(inputs, sigmas=100.0)
    rows = evals.extra["evals"]
    steps = list(dict.fromkeys(row["step"] for row in rows))
    assert steps == ["init", *TRAINING_STEPS]
    counts = {(row["step"], row["suite"]): row["n"] for row in rows}
    assert [counts[step, "photo"] for step in ("init", "mid_train", "parl")] == [4, 2, 4]
    assert [counts[step, "wide_search_swarm"] for step in ("init", "mid_train", "parl")] == [2, 2, 2]
    assert {(row["ability"], row["modality"]) for row in rows} >= {
        ("knowledge", "image"),
        ("agentic", "text"),
        ("reasoning", "video"),
    }
    assert evals.extra["decision"] == "promote"
    assert set(evals.extra["swarm"]["parl"]) == {"wide_search_single", "wide_search_swarm"}
    assert set(evals.extra["chance"]) == {row["suite"] for row in rows}
    store = ObjectStore.from_env()
    manifests.fetch(store, evals.uri, tmp_path / "evals")
    history = [json.loads(line) for line in (tmp_path / "evals" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == list(range(7))
    assert "eval/digit_string/knowledge/image" in history[0]

    config = {"environment": "local", "model_name": f"moonflow-{step_environment}", "alias": "champion"}
    promotion = run_step("promote", config, {"checkpoint": inputs["parl"], "evals": evals.uri})
    checkpoint = manifests.read(store, inputs["parl"])
    assert promotion.extra["manifest_sha256"] == checkpoint.sha256
    repository = tmp_path / "gitops.git"
    log = subprocess.run(
        ["git", "log", "-1", "--format=%H%n%B"], cwd=repository, check=True, capture_output=True, text=True
    ).stdout
    assert log.splitlines()[0] == promotion.extra["commit"]
    assert inputs["parl"] in log and "digit_string" in log
    champion = mlflow.MlflowClient(tracking_uri=mlflow.get_tracking_uri()).get_model_version_by_alias(
        config["model_name"], "champion"
    )
    assert (str(champion.version), champion.source) == (promotion.extra["version"], inputs["parl"])
    assert champion.tags["manifest_sha256"] == checkpoint.sha256

    served = run_step("serve", {}, {"data": inputs["data"], "promotion": promotion.uri})
    assert served.extra["endpoint_checked"] is True
    assert served.extra["manifest_sha256"] == checkpoint.sha256
    assert served.extra["question"] and served.extra["image"].startswith("data:image/png;base64,")


def test_a_killed_evaluation_goes_on_after_its_last_checkpoint(inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    from components.evaluate import stage

    real, asked = stage._scores, []

    async def dies_at_the_third(*arguments):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(1)
        return await real(*arguments)

    monkeypatch.setattr(stage, "_scores", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluated(inputs)
    calls = []

    async def counts(*arguments):
        calls.append(1)
        return await real(*arguments)

    monkeypatch.setattr(stage, "_scores", counts)
    evals = evaluated(inputs)
    assert len(calls) == 5  # of seven, two were kept
    assert {row["step"] for row in evals.extra["evals"]} == {"init", *TRAINING_STEPS}


def test_what_the_gate_held_is_not_promoted(inputs: dict[str, str]):
    held = evaluated(
        {key: inputs[key] for key in ("data", "vit_pretrain", "zero_vision_sft", "parl")}, floors="digit_string=1.0"
    )
    assert held.extra["decision"] == "hold"
    with pytest.raises(MoonflowError, match=r"does not allow a promotion: digit_string 0\.00 < 1"):
        run_step("promote", {}, {"checkpoint": inputs["parl"], "evals": held.uri})


def test_only_what_was_evaluated_is_promoted(inputs: dict[str, str]):
    evals = evaluated({key: inputs[key] for key in ("data", "vit_pretrain", "zero_vision_sft")}, sigmas=100.0)
    with pytest.raises(MoonflowError, match="did not measure"):
        run_step("promote", {}, {"checkpoint": inputs["parl"], "evals": evals.uri})
