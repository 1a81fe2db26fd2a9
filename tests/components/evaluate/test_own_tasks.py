"""The evaluation of a user's tasks: their rows and parts, and broken ones that cost no other suite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from components.evaluate.config import Config
from components.evaluate.gate import Rules, decide
from components.runtime.checkpoints import manifest as manifests
from components.runtime.step import read_metrics, run_step
from components.runtime.steps import disagreement
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from tests.components.joint_rl.test_own_tasks import PAGE
from tests.rl.tasks.user_tasks import HERE
from tests.tiny_folders import tiny_tokenizer, write_data_folder
from tests.training import model_that_ends_its_turns, save_checkpoint


def test_tasks_are_suites_and_broken_ones_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "own")
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "sky.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    data = write_data_folder(tmp_path / "data", 2)
    index = json.loads((data / "index.json").read_text())
    index["families"] = {"digit_string": index["families"]["digit_string"]}
    (data / "index.json").write_text(json.dumps(index))
    store = open_store()

    def publish(step: str, folder: Path, kind: str) -> str:
        return manifests.publish(store, f"own/{step}/0", folder, kind=kind, run_id="own", step=step, index=0).uri

    uris = {"data": publish("prepare_data", data, "data")}
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, model_that_ends_its_turns(tiny_tokenizer()), data, None, {})
    uris["parl"] = publish("parl", checkpoint, "checkpoint")
    broken = ("RaisesVerdict", "HangsPrompt", "NoPrompts", "HighScore")
    tasks = ", ".join(["sky:Stars", f"{HERE}:Even", *(f"{HERE}:{name}" for name in broken)])
    config = {"samples": 12, "samples_intermediate": 6, "champion": "", "well_formed": 0.0, "sigmas": 100.0,
              "tasks": tasks, "floors": "Stars=0"}  # fmt: skip
    made = run_step("evaluate", config, uris)

    rows = {(row["step"], row["suite"]): row for row in made.extra["evals"]}
    assert {suite for step, suite in rows if step == "parl"} == {"digit_string", "Stars", "Even"}
    assert rows["parl", "Stars"]["n"] == 12 and rows["init", "Stars"]["n"] == 6
    assert (rows["parl", "Stars"]["ability"], rows["parl", "Stars"]["modality"]) == ("reasoning", "image")
    assert 0 < made.extra["chance"]["Stars"] < 0.5 and made.extra["decision"] == "promote"
    warnings = "\n".join(made.extra["warnings"])
    assert re.search(f"a task is not evaluated: .*{HERE}:HangsPrompt is not asked", warnings)
    assert re.search(f"a task is not evaluated: {HERE}:NoPrompts: it has 0 prompts", warnings)
    for name in ("RaisesVerdict", "HighScore"):
        assert f"{name} is not in the scores of parl: too many of its episodes failed" in warnings
    folder = tmp_path / "fetched"
    manifests.fetch(store, made.uri, folder)
    last = read_metrics(folder)[-1]
    assert last["eval/Stars/reasoning/image"] == rows["parl", "Stars"]["value"]
    assert last["episodes/failed"] == 0.0 and "eval/Even/reasoning/text/length" in last


def test_a_floor_may_name_a_task_and_no_task_takes_the_name_of_a_suite() -> None:
    config = Config.parse({"tasks": "sky:Stars", "floors": "Stars=0.5, digit_string=0.1"}, "step evaluate")
    assert disagreement({"evaluate": config}) == ""
    for values, told in (
        ({"tasks": "sky:Stars", "floors": "Star=0.5"}, "did you mean Stars"),
        ({"tasks": "sky:digit_count"}, "there is a suite digit_count already"),
        ({"tasks": "Stars"}, "write module:name"),
    ):
        with pytest.raises(MoonflowError, match=told):
            Config.parse(values, "step evaluate")


def test_the_floor_of_a_task_that_broke_holds_the_model_back() -> None:
    row = {"step": "parl", "suite": "fact_qa", "ability": "knowledge", "modality": "text", "value": 0.5,
           "stderr": 0.1, "n": 8}  # fmt: skip
    verdict = decide(
        [row], Rules({"Stars": 0.1}, 2.0, 0.0, 0.0), candidate="parl", start="init", well_formed=(1.0, 8), champion=None
    )
    assert verdict.decision == "hold" and verdict.reasons[0] == "Stars was not evaluated, and has a floor"
