"""What is typed wrong into Kubeflow's form is told by the first task, not by the one that it is meant for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.runtime.kfp import later
from model.boundary.errors import MoonflowError
from pipelines.compile import compile_ir
from pipelines.dag import pipeline_parameters
from pipelines.profile import PROFILES, load_profile
from pipelines.run import run_lock


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.toml")))
def test_the_texts_of_every_shipped_profile_pass(name: str) -> None:
    parameters = pipeline_parameters(load_profile(name))
    later.check(later.as_text((p.step, p.field, p.default) for p in parameters if p.step and p.type is str))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("evaluate.floors=digit_strin=0.5, photo=0.1", "did you mean digit_string"),
        ("serve.alias=latest", "step serve: parameter 'alias'"),
        ("promote.model_name=a:b", "step promote: parameter 'model_name'"),
        ("vit_pretrain.preset=tinny", "did you mean tiny"),
        ("promote.environment=dev\nserve.environment=prod", "give them the same value"),
    ],
)
def test_a_wrong_text_is_one_line(text: str, told: str) -> None:
    with pytest.raises(MoonflowError) as caught:
        later.check(f"mid_train.context_steps=2,4\n{text}\njoint_rl.modalities=text")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_task_of_a_run_tells_what_a_later_one_would_refuse(tmp_path: Path) -> None:
    """As the form sends it, through kfp.local: the pipeline is compiled with right values."""
    for folder in ("tasks", "work"):
        (tmp_path / folder).mkdir()
    compile_ir(load_profile("smoke"), tmp_path / "pipeline.yaml")
    arguments = {"p00_run_id": "r", "p10_evaluate_floors": "digit_string=0.8, 'photo'=0.5", "p10_evaluate_margin": 0.1}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    environment = os.environ | {"MOONFLOW_RUN_DIR": str(tmp_path), "MOONFLOW_STORE": f"file://{tmp_path}/store"}
    with run_lock(tmp_path):  # without a holder of the lock the worker ends itself
        worker = [sys.executable, "-m", "pipelines.worker", str(tmp_path)]
        subprocess.run(worker, env=environment, timeout=120, check=True, start_new_session=True)
    state = json.loads((tmp_path / "tasks" / "prepare_data.json").read_text())
    assert state["state"] == "failed" and "'photo'" in state["error"] and "step evaluate" in state["error"]
    assert {path.stem for path in (tmp_path / "tasks").iterdir()} == {"prepare_data", "finish"}
