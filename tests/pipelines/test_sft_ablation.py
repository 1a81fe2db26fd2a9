"""The SFT ablation's DAG, its profile, and a whole run of it with one seed."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from components.ablation.sft.arms import ARMS, SUITES, TWINS, cells
from components.runtime.steps import PIPELINES, component_of, config_class
from model.boundary.errors import MoonflowError
from model.data.families.programs import KINDS
from model.data.order.mixtures import mixtures
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes
from tests.tiny_folders import write_checkpoint


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return shipped.compiled("claims-sft")[0]


def test_one_loop_over_the_checkpoint_before_and_all_arms_and_seeds(compiled: dict[str, Any]) -> None:
    dags = {name: component["dag"]["tasks"] for name, component in compiled["components"].items() if "dag" in component}
    (loop,) = (task for tasks in dags.values() for task in tasks.values() if "parameterIterator" in task)
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == cells(range(1, 4)) and len(cells(range(1, 4))) == 7
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2
    assert sorted(loop["dependentTasks"]) == ["import-checkpoint", "prepare-data"]
    (arm,) = dags[loop["componentRef"]["name"]].values()
    assert set(arm["inputs"]["artifacts"]) == {"data", "parent"}
    prepare = next(tasks["prepare-data"] for tasks in dags.values() if "prepare-data" in tasks)
    assert prepare["inputs"]["artifacts"]["tokenizer"]["taskOutputArtifact"]["producerTask"] == "import-checkpoint"
    finish = compiled["root"]["dag"]["tasks"]["finish"]
    named = finish["inputs"]["parameters"]["tasks"]["runtimeValue"]["constant"]
    assert named.split(",") == load_profile("claims-sft").task_names, "what the report is about"
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_the_loop_gives_arm_and_seed_and_the_user_the_rest(compiled: dict[str, Any]) -> None:
    names = set(compiled["root"]["inputDefinitions"]["parameters"])
    fields = {p.field for p in pipeline_parameters(load_profile("claims-sft")) if p.step == "sft_arm"}
    assert fields == set(config_class("sft_arm").model_fields) - {"arm", "seed"}
    assert {f"p03_sft_arm_{field}" for field in fields} <= names
    assert set(component_of("sft_arm").component_spec.inputs or {}) == fields | {"cell", "run_id", "data", "parent"}


def test_the_profile_tells_its_tasks_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    profile = load_profile("claims-sft", ["run.seeds=2"])
    assert tuple(profile.steps) == PIPELINES["sft_ablation"]
    assert profile.task_names == [
        "import_checkpoint", "prepare_data", *(f"sft_arm-{cell}" for cell in cells(range(1, 3))), "finish",
    ]  # fmt: skip
    path = tmp_path / "resolved.toml"
    path.write_text(profile.as_toml())
    again = load_profile(str(path))
    assert (again.run, again.steps) == (profile.run, profile.steps)
    for overrides, told in (
        (["sft_arm.seed=1"], "sft_arm.seed: the pipeline runs every value"),
        (["run.preset=tiny"], "sft_ablation has the shape of its checkpoint"),
        (["sft_arm.mixture=short"], "prepare_data.mixture is 'broad', but sft_arm.mixture is 'short'"),
        (["prepare_data.mixture=short", "sft_arm.mixture=short"], "sft_arm names 'narrow_program_image'.*no samples"),
    ):  # fmt: skip
        with pytest.raises(MoonflowError, match=told):
            load_profile("claims-sft", overrides)


def test_an_arm_reads_an_image_program_at_most_twice_and_there_are_enough_tasks() -> None:
    values = {step: config.model_dump() for step, config in load_profile("claims-sft").steps.items()}
    data, arm, shares = values["prepare_data"], values["sft_arm"], mixtures("broad")
    made = data["text_samples"] * shares.text_samples["image_program"] / sum(shares.text_samples.values())
    read = arm["steps"] * arm["rows"] * arm["tokens_per_row"] / 215  # tokens of a program in the mean
    read *= shares.trajectories["image_program"] / sum(shares.trajectories.values())
    assert 0.5 * read < made < 1.5 * read
    assert data["eval_samples"] >= max(arm["samples"], arm["program_samples"])
    assert arm["program_samples"] % len(KINDS) == 0


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_a_whole_run_compares_its_arms(tmp_path: Path) -> None:
    """Long: a minute of CPU, most of it the start of processes. It learns nothing."""
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base")
    run_dir, source = tmp_path / "run", ("--set", f"import_checkpoint.source={tmp_path / 'base'}")
    printed = complete(run_dir, *source, profile="claims-sft-smoke", timeout=1500)
    assert "sft_arm-before-0: done" in printed and "sft_arm-narrow-0: done" in printed
    printed = complete(run_dir, *source, profile="claims-sft-smoke", timeout=600)
    assert "sft_arm-text-0: kept" in printed and not processes(run_dir)

    found = json.loads((run_dir / "summary.json").read_text())["ablation"]
    assert found["name"] == "sft" and set(found["arms"]) == set(ARMS)
    for run in found["runs"]:
        families = set(run["tokens_by_family"])
        assert bool(families) == (run["arm"] != "before")
        assert ("narrow_program_image" in families) <= (run["arm"] == "narrow")
        assert set(run["scores"]) == set(SUITES)
        assert {kind: score["n"] for kind, score in run["scores"][TWINS[0]]["kinds"].items()} == {
            kind.name: 1 for kind in KINDS
        }
    (text,), (narrow,) = found["arms"]["text"]["tokens"], found["arms"]["narrow"]["tokens"]
    assert abs(text - narrow) <= 0.1 * text
    assert "| new_objects (untrained) | 1 |" in (run_dir / "table.md").read_text()
    page = (run_dir / "report.html").read_text()
    assert "tools on images" in page and not re.search(r'(src|href)="https?://', page)

    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database:
        runs = dict(database.execute("select name, status from runs where lifecycle_stage = 'active'"))
        arms = [f"sft_arm-{cell}" for cell in cells(range(1))]
        assert runs == dict.fromkeys(("claims-sft-smoke", "import_checkpoint", "prepare_data", *arms), "FINISHED")
        query = "select distinct runs.name, metrics.key from metrics join runs using (run_uuid)"
        keys: dict[str, set[str]] = {}
        for name, key in database.execute(query):
            keys.setdefault(name, set()).add(key)
    common = set.intersection(*(keys[arm] for arm in arms))
    assert {"eval/image_program_image/coding/image", "tool_calls/array_tool_image"} <= common
    assert {f"kind/image_program_image/{kind.name}/tool_calls" for kind in KINDS} <= common
    assert "gain/success/text/image_program_image" in keys["claims-sft-smoke"]
