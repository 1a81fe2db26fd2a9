"""The RL ablation's DAG, its profile, and a whole run of it with one seed."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from components.ablation.rl.arms import ARMS, SUITES, cells
from components.prepare_data.config import Config as Data
from components.rl_arm.config import Config
from components.runtime.steps import PIPELINES, component_of
from model.boundary.errors import MoonflowError
from pipelines.compile import compile_ir
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes
from tests.tiny_folders import write_checkpoint


def chain(path: Path | None = None) -> dict[str, dict[str, str]]:
    """Arm -> its input artifacts, each with the arm that makes it, or "" for what comes from outside of the loop."""
    spec = shipped.documents(path)[0] if path else shipped.compiled("claims-rl")[0]
    dags = [component["dag"]["tasks"] for component in spec["components"].values() if "dag" in component]
    (tasks,) = (dag for dag in dags if any(name.startswith("rl-arm") for name in dag))
    arms = {name: task["inputs"]["parameters"]["arm"]["runtimeValue"]["constant"] for name, task in tasks.items()}
    return {
        arms[name]: {
            key: arms.get(given.get("taskOutputArtifact", {}).get("producerTask", ""), "")
            for key, given in task["inputs"]["artifacts"].items()
        }
        for name, task in tasks.items()
    }


def test_every_seed_has_the_whole_chain_of_arms() -> None:
    spec = shipped.compiled("claims-rl")[0]
    dags = [component["dag"]["tasks"] for component in spec["components"].values() if "dag" in component]
    (loop,) = (task for tasks in dags for task in tasks.values() if "parameterIterator" in task)
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == ["1", "2", "3"]
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2
    assert sorted(loop["dependentTasks"]) == ["import-checkpoint", "prepare-data"]
    assert chain() == {
        name: {"data": "", "parent": arm.start, **({"successes": arm.successes} if arm.successes else {})}
        for name, arm in ARMS.items()
    }


def test_the_chosen_arms_run_alone_and_bring_what_they_need(tmp_path: Path) -> None:
    profile = load_profile("claims-rl", ["run.seeds=1", "run.arms=before,visual"])
    assert [name for name in profile.task_names if "arm" in name] == ["rl_arm-before-1", "rl_arm-visual-1"]
    compile_ir(profile, tmp_path / "pipeline.yaml")
    assert set(chain(tmp_path / "pipeline.yaml")) == {"before", "visual"}
    for arms, told in (("before,rft", "rft begins after visual: name that too"), ("joint", "joint begins after rft")):
        with pytest.raises(MoonflowError, match=told):
            load_profile("claims-rl", [f"run.arms={arms}"])


def test_the_profile_tells_its_tasks_and_refuses_what_does_not_fit() -> None:
    profile = load_profile("claims-rl")
    assert tuple(profile.steps) == PIPELINES["rl_ablation"]
    arms = [f"rl_arm-{cell}" for cell in cells(range(1, 4))]
    assert profile.task_names == ["import_checkpoint", "prepare_data", *arms, "finish"] and len(arms) == 15
    fields = {p.field for p in pipeline_parameters(profile) if p.step == "rl_arm"}
    assert fields == set(Config.model_fields) - {"arm", "seed"}
    inputs = set(component_of("rl_arm").component_spec.inputs or {})
    assert inputs == fields | {"arm", "cell", "run_id", "data", "parent", "successes"}
    for overrides, told in (
        (["rl_arm.mixture=short"], "prepare_data.mixture is 'broad', but rl_arm.mixture is 'short'"),
        (
            ["rl_arm.mixture=short", "prepare_data.mixture=short"],
            "rl_arm.visual_families names 'scene_box'.*or the mixture",
        ),
        (["rl_arm.visual_families=fact_qa"], "'fact_qa' is no family that is measured"),
    ):
        with pytest.raises(MoonflowError, match=told):
            load_profile("claims-rl", overrides)


def test_the_profile_makes_as_many_held_out_tasks_as_are_asked_and_an_error_of_two_points() -> None:
    data, arm = (load_profile("claims-rl").steps[step] for step in ("prepare_data", "rl_arm"))
    assert isinstance(data, Data) and isinstance(arm, Config)
    assert data.eval_samples >= arm.samples and 100 * 0.5 / arm.samples**0.5 <= 2.0


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_a_whole_run_compares_its_arms(tmp_path: Path) -> None:
    """Long: two minutes of CPU, most of it the start of processes. It learns nothing."""
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base")
    run_dir, source = tmp_path / "run", ("--set", f"import_checkpoint.source={tmp_path / 'base'}")
    printed = complete(run_dir, *source, profile="claims-rl-smoke", timeout=1500)
    assert "rl_arm-before-0: done" in printed and "rl_arm-joint-0: done" in printed
    printed = complete(run_dir, *source, profile="claims-rl-smoke", timeout=600)
    assert "rl_arm-rft-0: kept" in printed and not processes(run_dir)

    found = json.loads((run_dir / "summary.json").read_text())["ablation"]
    assert found["name"] == "rl" and set(found["arms"]) == set(ARMS)
    assert all({suite: score["n"] for suite, score in run["scores"].items()} == dict.fromkeys(SUITES, 4)
               for run in found["runs"])  # fmt: skip
    assert "| fact_qa | knowledge, text | 4 |" in (run_dir / "table.md").read_text()
    page = (run_dir / "report.html").read_text()
    assert "what does RL on images do" in page and not re.search(r'(src|href)="https?://', page)

    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database:
        runs = dict(database.execute("select name, status from runs where lifecycle_stage = 'active'"))
        names = ("claims-rl-smoke", "import_checkpoint", "prepare_data", *(f"rl_arm-{cell}" for cell in cells([0])))
        assert runs == dict.fromkeys(names, "FINISHED")
        keys = {key for (key,) in database.execute("select distinct key from metrics")}
    assert {"gain/visual/text", "success/joint/agentic", "eval/needle/knowledge/text"} <= keys
