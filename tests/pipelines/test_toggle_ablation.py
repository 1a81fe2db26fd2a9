"""The Toggle ablation's DAG, its profile, and a whole run of it with one seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from components.ablation.toggle.arms import ARMS, FAMILIES, TRAINED_ON, cells
from components.prepare_data.config import parse_counts
from components.runtime.steps import PIPELINES, config_class
from model.boundary.errors import MoonflowError
from model.data.order.mixtures import mixtures
from pipelines.compile import compile_ir
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes
from tests.tiny_folders import write_checkpoint


def test_one_cold_start_and_one_loop_over_the_arms() -> None:
    compiled = shipped.compiled("claims-toggle")[0]
    dags = {name: component["dag"]["tasks"] for name, component in compiled["components"].items() if "dag" in component}
    (loop,) = (task for tasks in dags.values() for task in tasks.values() if "parameterIterator" in task)
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == cells(range(11, 14)) and len(cells(range(3))) == 10
    assert sorted(loop["dependentTasks"]) == ["prepare-data", "zero-vision-sft"]
    fields = {p.field for p in pipeline_parameters(load_profile("claims-toggle")) if p.step == "toggle_arm"}
    assert fields == set(config_class("toggle_arm").model_fields) - {"arm", "seed"}


def test_the_loop_runs_the_chosen_arms_alone(tmp_path: Path) -> None:
    compile_ir(load_profile("claims-toggle", ["run.seeds=2", "run.arms=toggle"]), tmp_path / "pipeline.yaml")
    spec = shipped.documents(tmp_path / "pipeline.yaml")[0]
    dags = [component["dag"]["tasks"] for component in spec["components"].values() if "dag" in component]
    (loop,) = (task for tasks in dags for task in tasks.values() if "parameterIterator" in task)
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == ["toggle-11", "toggle-12"]


def test_the_profile_tells_its_tasks_and_refuses_what_does_not_fit() -> None:
    profile = load_profile("claims-toggle", ["run.seeds=2"])
    assert tuple(profile.steps) == PIPELINES["toggle_ablation"]
    assert profile.task_names == [
        "import_checkpoint",
        "prepare_data",
        "zero_vision_sft",
        *(f"toggle_arm-{cell}" for cell in cells(range(11, 13))),
        "finish",
    ]
    chosen = load_profile("claims-toggle", ["run.seeds=2", "run.arms=toggle"])
    assert [name for name in chosen.task_names if "arm" in name] == ["toggle_arm-toggle-11", "toggle_arm-toggle-12"]
    with pytest.raises(MoonflowError, match="toggle_arm names 'free_arithmetic'.*or the mixture thinking"):
        load_profile(
            "claims-toggle",
            ["prepare_data.mixture=broad", "zero_vision_sft.mixture=broad", "prepare_data.eval_samples_of="],
        )


def test_the_prompts_of_training_are_a_part_of_what_is_made_and_budgets_bind_more_than_once() -> None:
    values = {step: config.model_dump() for step, config in load_profile("claims-toggle").steps.items()}
    data, arm, shares = values["prepare_data"], values["toggle_arm"], mixtures("thinking").text_samples
    assert arm["prompts"] < data["text_samples"] * shares[TRAINED_ON] / sum(shares.values())
    assert arm["iterations"] * arm["prompts_per_iteration"] >= 3 * arm["prompts"]
    assert parse_counts(data["eval_samples_of"]) == dict.fromkeys(FAMILIES, arm["samples"])


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_a_whole_run_compares_its_arms(tmp_path: Path) -> None:
    """Long: a minute of CPU, most of it the start of processes. It learns nothing."""
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base")
    run_dir, source = tmp_path / "run", ("--set", f"import_checkpoint.source={tmp_path / 'base'}")
    printed = complete(run_dir, *source, profile="claims-toggle-smoke", timeout=1500)
    assert "toggle_arm-before-0: done" in printed and "toggle_arm-budget-0: done" in printed
    printed = complete(run_dir, *source, profile="claims-toggle-smoke", timeout=600)
    assert "toggle_arm-toggle-0: kept" in printed and not processes(run_dir)
    found = json.loads((run_dir / "summary.json").read_text())["ablation"]
    assert found["name"] == "toggle" and set(found["arms"]) == set(ARMS)
    assert all(run["answers"][family]["n"] == 4 for run in found["runs"] for family in FAMILIES)
    page = (run_dir / "report.html").read_text()
    assert "does Toggle save" in page and not re.search(r'(src|href)="https?://', page)
