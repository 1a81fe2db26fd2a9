"""Pre-training's DAG and its profile, and a whole run of it from which post-training starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.mid_train.stage import shapes
from components.runtime.config import meaning
from components.runtime.steps import PIPELINES, STEPS, config_class
from model.boundary.errors import MoonflowError
from model.data.order.mixtures import MIXTURES
from model.evals.suites import SUITES
from model.network.config import preset
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from pipelines.source_run import run_and_step
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes
from tests.pipelines.shipped import tasks_of

SMALL = (
    "prepare_data.text_samples=2000", "prepare_data.image_samples=1500", "prepare_data.long_samples=100",
    "prepare_data.eval_samples=2", "prepare_data.samples_per_shard=200", "vit_pretrain.steps=2",
    "vit_pretrain.rows=2", "vit_pretrain.projector_steps=1", "joint_pretrain.steps=5", "joint_pretrain.rows=2",
    "mid_train.steps=3", "mid_train.rows=1", "evaluate.samples=2", "evaluate.samples_intermediate=2",
)  # fmt: skip


def test_it_has_the_recipes_steps_before_post_training_and_promotes_nothing() -> None:
    assert PIPELINES["pretrain"] == (*STEPS[: STEPS.index("zero_vision_sft")], "evaluate", "finish")


def test_every_checkpoint_is_evaluated_and_nothing_waits_for_the_gate() -> None:
    spec, _ = shipped.compiled("base")
    tasks = tasks_of(spec)
    assert set(tasks) == set(PIPELINES["pretrain"])
    given = {
        name: each["taskOutputArtifact"]["producerTask"]
        for name, each in tasks["evaluate"]["inputs"]["artifacts"].items()
    }
    steps = ("prepare_data", "vit_pretrain", "joint_pretrain", "mid_train")
    assert given == {("data" if step == "prepare_data" else step): step.replace("_", "-") for step in steps}
    assert "condition" not in json.dumps([task.get("triggerPolicy", {}) for task in tasks.values()])
    assert tasks["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    later = tasks["prepare_data"]["inputs"]["parameters"]["later"]["runtimeValue"]["constant"]
    assert "joint_pretrain.mixture={{" in later and "evaluate.floors={{" in later


def test_the_profile_has_its_tokens_and_its_context() -> None:
    profile = load_profile("base")
    values = {step: config.model_dump() for step, config in profile.steps.items()}
    vit, joint, mid = (values[step] for step in ("vit_pretrain", "joint_pretrain", "mid_train"))
    window, rows, _ = shapes(profile.steps["mid_train"], joint["tokens_per_row"])[-1]
    assert window == 2048 and joint["tokens_per_row"] == preset("tiny").text_config.max_position_embeddings
    placed = sum(step["rows"] * step["tokens_per_row"] * step["steps"] for step in (vit, joint))
    assert 0.985 * (placed + window * rows * mid["steps"]) >= 35e6
    names = [parameter.name for parameter in pipeline_parameters(profile)]
    assert {"p00_preset", "p01_prepare_data_mixture", "p03_joint_pretrain_mixture", "p05_evaluate_floors"} <= set(names)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["prepare_data.mixture=brod"], r"\[prepare_data\]: parameter 'mixture'.*'brod'; did you mean broad"),
        (["mid_train.mixture=short"], "prepare_data.mixture is 'broad', but mid_train.mixture is 'short'"),
        (["prepare_data.mixture=short"], "prepare_data.mixture is 'short', but vit_pretrain.mixture is 'broad'"),
    ],
)
def test_mixtures_that_do_not_fit_together_are_one_line(overrides: list[str], told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        load_profile("base", overrides)


def test_a_floor_or_question_without_tasks_is_told_before_the_first_step() -> None:
    with pytest.raises(MoonflowError, match=r"evaluate.floors names 'digit_tally'.*'short'.*or the mixture broad"):
        load_profile("tiny", ["evaluate.floors=photo=0.1, digit_tally = 0.5"])
    with pytest.raises(MoonflowError, match="serve.family names 'ocr_text'.*'short'"):
        load_profile("tiny", ["serve.family=ocr_text"])
    broad = [f"{step}.mixture=broad" for step in (*STEPS[:5], "rejection_sft")]
    load_profile("tiny", [*broad, "evaluate.floors=digit_tally=0.5", "serve.family=ocr_text"])
    for step in ("prepare_data", "zero_vision_sft"):
        described = meaning(config_class(step).model_fields["mixture"])
        assert all(f"{name}, for" in described for name in MIXTURES)


@pytest.mark.long
@pytest.mark.services
def test_a_whole_run_is_measured_and_post_training_starts_from_it(tmp_path: Path) -> None:
    """What it learns is next to nothing, so its gate holds it back, and without floors lets it pass.

    Long: two minutes of CPU, most of it the start of processes.
    """
    base = tmp_path / "base"
    given = [part for override in SMALL for part in ("--set", override)]
    printed = complete(base, *given, profile="base")
    assert "promoted   nothing: digit_string" in printed and "served" not in printed
    rules = ("evaluate.floors=", "evaluate.well_formed=0", "evaluate.sigmas=100")
    printed = complete(base, *given, *(part for rule in rules for part in ("--set", rule)), profile="base")
    assert "mid_train: kept" in printed and "gate       passed: " in printed
    assert processes(base) == []

    summary = json.loads((base / "summary.json").read_text())
    assert [step["name"] for step in summary["steps"]] == list(PIPELINES["pretrain"][:-1])
    made = MIXTURES["broad"].made
    assert {row["suite"] for row in summary["evals"]} == {
        suite.name for suite in SUITES.values() if suite.family in made
    }
    stages = list(dict.fromkeys(row["step"] for row in summary["evals"]))
    assert stages == ["init", "vit_pretrain", "joint_pretrain", "mid_train"]
    assert re.search(r'class="verdict good">passed<', (base / "report.html").read_text())

    command = [sys.executable, "-m", "pipelines.cli", "evaluate", str(base), "--suite", "needle", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checkpoint"].startswith("step mid_train of run base") and found["suites"][0]["n"] == 2

    assert run_and_step(base) == (base, "")
    source = ("--set", f"import_checkpoint.source={base}")
    reading = ("prepare_data", "zero_vision_sft", "rejection_sft")
    broad = [part for step in reading for part in ("--set", f"{step}.mixture=broad")]
    printed = complete(tmp_path / "post", *source, *broad, profile="post_train_smoke")
    assert "promoted   version" in printed and str(base) in printed
