"""The ablation's DAG, its profile, and a whole run of it with one seed."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from components.ablation.fusion.arms import ARMS, cells
from components.runtime.steps import PIPELINES, component_of, config_class
from model.boundary.errors import MoonflowError
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes, start
from tests.waiting import happens


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return shipped.compiled("fusion")[0]


def test_one_loop_over_all_arms_and_seeds(compiled: dict[str, Any]) -> None:
    dags = {name: component["dag"]["tasks"] for name, component in compiled["components"].items() if "dag" in component}
    (loop,) = (task for tasks in dags.values() for task in tasks.values() if "parameterIterator" in task)
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == cells(range(3)) and len(cells(range(3))) == 9
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2
    assert loop["dependentTasks"] == ["prepare-data"]
    (arm,) = dags[loop["componentRef"]["name"]].values()
    (item,) = arm["inputs"]["parameters"]["cell"].values()
    assert item == loop["parameterIterator"]["itemInput"]
    finish = compiled["root"]["dag"]["tasks"]["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_the_loop_gives_arm_and_seed_and_the_user_the_rest(compiled: dict[str, Any]) -> None:
    names = set(compiled["root"]["inputDefinitions"]["parameters"])
    fields = {p.field for p in pipeline_parameters(load_profile("fusion")) if p.step == "fusion_arm"}
    assert fields == set(config_class("fusion_arm").model_fields) - {"preset", "arm", "seed"}
    assert {f"p02_fusion_arm_{field}" for field in fields} <= names
    arguments = set(component_of("fusion_arm").component_spec.inputs or {})
    assert arguments == fields | {"preset", "cell", "run_id", "data"}


def test_the_larger_profile_reads_five_million_tokens_an_arm_in_the_batches_of_tiny() -> None:
    arm = load_profile("claims-fusion").step("fusion_arm").model_dump()
    joint = load_profile("tiny").step("joint_pretrain").model_dump()
    assert arm["steps"] * arm["rows"] * arm["tokens_per_row"] * 0.99 >= 5e6, "rows are 99% full"
    same = ("rows", "tokens_per_row", "learning_rate")
    assert [arm[name] for name in same] == [joint[name] for name in same]


def test_the_profile_tells_its_tasks_and_refuses_what_the_loop_gives(tmp_path: Path) -> None:
    profile = load_profile("fusion", ["run.seeds=2"])
    assert tuple(profile.steps) == PIPELINES["fusion_ablation"]
    assert profile.task_names == ["prepare_data", *(f"fusion_arm-{cell}" for cell in cells(range(2))), "finish"]
    path = tmp_path / "resolved.toml"
    path.write_text(profile.as_toml())
    again = load_profile(str(path))
    assert (again.run, again.steps) == (profile.run, profile.steps)
    for override, told in (("fusion_arm.arm=mid", "fusion_arm.arm"), ("joint_pretrain.steps=3", "joint_pretrain"),
                           ("run.pipeline=k26", "pipeline")):  # fmt: skip
        with pytest.raises(MoonflowError, match=told):
            load_profile("fusion", [override])
    with pytest.raises(MoonflowError, match="no step serve"):
        profile.step("serve")


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_killed_in_its_arms_it_goes_on_and_compares_them(tmp_path: Path) -> None:
    """Long: a minute of CPU, most of it the start of processes."""
    run_dir = tmp_path / "run"
    process = start(run_dir, profile="fusion-smoke")
    first = run_dir / "tasks" / "fusion_arm-early-0.json"

    def done() -> bool:
        assert process.poll() is None, process.communicate()
        return first.is_file() and json.loads(first.read_text())["state"] == "done"

    assert happens(done, 900, pause=0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert happens(lambda: not processes(run_dir), 60, pause=0.2)

    printed = complete(run_dir, profile="fusion-smoke", timeout=1500)
    assert "fusion_arm-early-0: kept" in printed and "fusion_arm-late-0: done" in printed
    assert not processes(run_dir)

    found = json.loads((run_dir / "summary.json").read_text())["ablation"]
    assert set(found["arms"]) == set(ARMS)
    for name, arm in found["arms"].items():
        (vision,), (text,) = arm["tokens"]["vision"], arm["tokens"]["text"]
        assert abs(vision - ARMS[name].budget * (vision + text)) <= 1000
    table = (run_dir / "table.md").read_text()
    assert "| early, K2.5 Table 1 | 0% | 10:90 | 25.8 |" in table
    page = (run_dir / "report.html").read_text()
    assert page.count("<svg") >= 3 and not re.search(r'(src|href)="https?://', page)

    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database:
        runs = dict(database.execute("select name, status from runs where lifecycle_stage = 'active'"))
        arms = {f"fusion_arm-{name}-0": name for name in ARMS}
        assert runs == dict.fromkeys(("fusion-smoke", "prepare_data", *arms), "FINISHED")
        query = """select runs.name, params.key, params.value from params join runs using (run_uuid)
                   where params.key in ('arm', 'seed') and runs.name like 'fusion_arm%'"""
        told = {(name, key): value for name, key, value in database.execute(query)}
        wanted = {task: {"arm": arm, "seed": "0"} for task, arm in arms.items()}
        assert told == {(task, key): value for task, values in wanted.items() for key, value in values.items()}
        query = """select distinct runs.name, metrics.key from metrics join runs using (run_uuid)
                   where runs.name like 'fusion_arm%'"""
        keys: dict[str, set[str]] = {}
        for name, key in database.execute(query):
            keys.setdefault(name, set()).add(key)
    logged = set.intersection(*keys.values())
    assert all(names == logged for names in keys.values()), "all arms log the same names, or they cannot be compared"
    assert {"tokens/vision", "tokens/text", "held_out/text", "held_out/vision", "loss/text"} <= logged
    assert {"eval/digit_string/knowledge/image", "eval/fact_qa/knowledge/text"} <= logged
