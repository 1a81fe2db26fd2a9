"""The swarm ablation's DAG, its profiles, and a whole run of it with one seed."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from components.ablation.swarm.arms import ARMS
from components.runtime.steps import PIPELINES, component_of, config_class
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.data.samples.tokenize import count_tokens
from model.evals.swarm import groups_of, held_out_task
from model.swarm.ways import AGENTS, FORCED, SWARM, WAYS
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.corpus import small_tokenizer
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes
from tests.tiny_folders import write_checkpoint


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return shipped.compiled("claims-swarm-ablations")[0]


def test_a_seeds_arms_run_in_a_loop_after_its_one_cold_start(compiled: dict[str, Any]) -> None:
    dags = {name: component["dag"]["tasks"] for name, component in compiled["components"].items() if "dag" in component}
    loops = {
        json.dumps(json.loads(task["parameterIterator"]["items"]["raw"])): task
        for tasks in dags.values()
        for task in tasks.values()
        if "parameterIterator" in task
    }
    seeds, arms = loops['["4", "5", "6"]'], loops[json.dumps(list(ARMS))]
    assert len(loops) == 2 and seeds["iteratorPolicy"]["parallelismLimit"] == 2
    assert sorted(seeds["dependentTasks"]) == ["import-checkpoint", "prepare-data"]
    assert arms["dependentTasks"] == ["swarm-start"]
    (arm,) = dags[arms["componentRef"]["name"]].values()
    assert set(arm["inputs"]["artifacts"]) == {"data", "parent"}
    assert "swarm-start" in arm["inputs"]["artifacts"]["parent"]["componentInputArtifact"]
    finish = compiled["root"]["dag"]["tasks"]["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_the_loops_give_arm_and_seed_and_the_user_the_rest(compiled: dict[str, Any]) -> None:
    names = set(compiled["root"]["inputDefinitions"]["parameters"])
    for phase, (step, outer) in enumerate((("swarm_start", {"seed"}), ("swarm_arm", {"arm", "seed"})), start=3):
        parameters = pipeline_parameters(load_profile("claims-swarm"))
        fields = {parameter.field for parameter in parameters if parameter.step == step}
        assert fields == set(config_class(step).model_fields) - outer
        assert {f"p{phase:02d}_{step}_{field}" for field in fields} <= names
        inputs = set(component_of(step).component_spec.inputs or {})
        assert inputs == fields | {"cell", "run_id", "data", "parent"}


def test_the_profiles_tell_their_tasks_and_refuse_what_does_not_fit() -> None:
    profile = load_profile("claims-swarm", ["run.seeds=2"])
    assert tuple(profile.steps) == PIPELINES["swarm_ablation"]
    assert profile.task_names == [
        "import_checkpoint", "prepare_data", "swarm_start-4", "swarm_start-5", "swarm_arm-trained-4",
        "swarm_arm-trained-5", "finish",
    ]  # fmt: skip
    every = load_profile("claims-swarm-ablations").task_names
    assert {name for name in every if name.endswith("-4")} == {"swarm_start-4", *(f"swarm_arm-{a}-4" for a in ARMS)}
    for overrides, told in (
        (["run.arms=trained,force"], "swarm_ablation has no arm 'force', did you mean forced"),
        (["swarm_start.mixture=broad"], "prepare_data.mixture is 'swarm', but swarm_start.mixture is 'broad'"),
        (["prepare_data.mixture=broad", "swarm_start.mixture=broad"], "families names 'world_.*or the mixture swarm"),
        (["swarm_arm.sizes=2,2"], "write different numbers of parts"),
        (["swarm_arm.measured_families=wide_search"], "'wide_search' is no family of the offline world"),
        (["swarm_arm.annealed_until=2"], "less than or equal to 1"),
    ):  # fmt: skip
        with pytest.raises(MoonflowError, match=told):
            load_profile("claims-swarm", overrides)
    with pytest.raises(MoonflowError, match="k25 has no arm 'text'; leave arms out"):
        load_profile("tiny", ["run.arms=text"])
    assert load_profile("claims-sft", ["run.arms=text", "run.seeds=1"]).cells("sft_arm") == ["text-1"]


def test_half_of_the_smoke_runs_window_holds_every_prompt_that_it_measures() -> None:
    steps = load_profile("claims-swarm-smoke").steps
    arm = steps["swarm_arm"]
    groups = groups_of(arm.measured_families.split(","), map(int, arm.sizes.split(",")))
    for task in (held_out_task(family, size, index) for family, size in groups for index in range(arm.tasks)):
        prompt = count_tokens(task.sample, small_tokenizer(), ImageConfig())[0]
        assert prompt + arm.max_new_tokens <= min(arm.window, arm.sub_agent_window) // 2, task.sample.key


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_a_whole_run_compares_its_arms(tmp_path: Path) -> None:
    """Long: two minutes of CPU, most of it the start of processes. It learns nothing."""
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base", window=512)
    run_dir, source = tmp_path / "run", ("--set", f"import_checkpoint.source={tmp_path / 'base'}")
    printed = complete(run_dir, *source, profile="claims-swarm-smoke", timeout=1500)
    assert "swarm_start-0: done" in printed and "swarm_arm-forced-0: done" in printed
    printed = complete(run_dir, *source, profile="claims-swarm-smoke", timeout=600)
    assert "swarm_arm-trained-0: kept" in printed and not processes(run_dir)

    found = json.loads((run_dir / "summary.json").read_text())["ablation"]
    assert found["name"] == "swarm" and set(found["arms"]) == {"trained", "forced"}
    for run in found["runs"]:
        wide = {row["way"] for row in run["table"] if row["family"] == "world_wide"}
        assert wide == (set(WAYS) if run["arm"] == "trained" else {SWARM, *AGENTS, FORCED})
        assert run["windows"] == [512, 512] and all(row["failed"] == 0 for row in (*run["table"], *run["halved"]))
        assert {row["size"] for row in run["table"]} == {1, 2, 4} and bool(run["halved"]) == (run["arm"] == "trained")
    assert "| swarm before PARL | 4 |" in (run_dir / "table.md").read_text()
    page = (run_dir / "report.html").read_text()
    assert "what does PARL make of a swarm" in page and not re.search(r'(src|href)="https?://', page)

    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database:
        runs = dict(database.execute("select name, status from runs where lifecycle_stage = 'active'"))
        tasks = ("import_checkpoint", "prepare_data", "swarm_start-0", "swarm_arm-trained-0", "swarm_arm-forced-0")
        assert runs == dict.fromkeys(("claims-swarm-smoke", *tasks), "FINISHED")
        query = "select runs.name, metrics.key, metrics.step from metrics join runs using (run_uuid)"
        logged: dict[str, set[tuple[str, int]]] = {}
        for name, key, step in database.execute(query):
            logged.setdefault(name, set()).add((key, step))
    assert {("reward/perf", 1), ("reward/perf", 2), ("reward/parallel", 1)} <= logged["swarm_arm-trained-0"]
    assert {("f1/single/world_wide/n4", 2), ("halved/f1/swarm/world_wide/n2", 2)} <= logged["swarm_arm-trained-0"]
    assert any(key.startswith("seconds/trained/swarm/n") for key, _ in logged["claims-swarm-smoke"])
