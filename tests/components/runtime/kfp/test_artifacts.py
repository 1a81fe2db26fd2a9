"""What a task leaves for Kubeflow: run as a pod's launcher runs a component, against a real object store."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from kfp.dsl.executor import Executor

from components.finish.component import finish
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.kfp.entry import enter
from components.runtime.store.object_store import ObjectStore
from tests.counted import Stage, counting

pytestmark = pytest.mark.services
Json = dict[str, Any]


# No postponed annotations in this file: the executor reads them.
def alone(run_id: str, made: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics], card: dsl.Output[dsl.Markdown]):
    given = {"run_id": run_id, "steps": 4, "rate": 0.1}
    enter("counted", given, inputs={}, output=made, metrics=metrics, card=card)


def after(
    run_id: str,
    policy: dsl.Input[dsl.Model],
    made: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
):
    given = {"run_id": run_id, "steps": 2, "rate": 0.1}
    enter("counted", given, inputs={"policy": policy}, output=made, metrics=metrics, card=card)


def run(function: Callable[..., None], root: Path, values: Json, inputs: Json, outputs: tuple[str, ...]) -> Json:
    """Run a component in a pod's place; its output artifacts as it describes them, by name.

    ``root`` is the task's folder below the run's pipeline root. An artifact lies where Kubeflow says: a task that names
    another place fails on a cluster, so this fails as well.
    """
    uris = {name: str(root / name) for name in outputs}
    told = {
        "inputs": {
            "parameterValues": values,
            "artifacts": {name: {"artifacts": [artifact]} for name, artifact in inputs.items()},
        },
        "outputs": {
            "outputFile": str(root / "executor_output.json"),
            "artifacts": {name: {"artifacts": [{"name": name, "uri": uri}]} for name, uri in uris.items()},
        },
    }
    Executor(told, function).execute()
    described = json.loads((root / "executor_output.json").read_text())["artifacts"]
    artifacts = {name: held["artifacts"][0] for name, held in described.items()}
    assert {name: artifact["uri"] for name, artifact in artifacts.items()} == uris
    assert not any("custom_path" in artifact for artifact in artifacts.values())
    return artifacts


def test_an_output_is_the_manifest_where_kubeflow_wants_it_and_its_metadata_names_the_prefix(
    step_environment: str, store: ObjectStore, define: Callable[[Stage], None], tmp_path: Path
) -> None:
    define(counting())
    outputs = ("made", "metrics", "card")
    made = run(alone, tmp_path / "root" / "alone", {"run_id": step_environment}, {}, outputs)["made"]
    manifest = Path(made["uri"]).read_bytes()
    assert made["metadata"]["manifest_uri"] == store.uri(f"{step_environment}/counted/1")
    assert made["metadata"]["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert store.get(f"{step_environment}/counted/1/manifest.json") == manifest

    # The next task finds the weights by the metadata alone.
    Path(made["uri"]).unlink()
    values = {"run_id": f"{step_environment}-after"}
    next_ = run(after, tmp_path / "root" / "after", values, {"policy": made}, outputs)["made"]
    found = Manifest.model_validate_json(Path(next_["uri"]).read_bytes())
    assert found.parents == (made["metadata"]["manifest_sha256"],)

    # The exit handler too leaves everything where it was told.
    status = {"state": "SUCCEEDED", "pipelineJobResourceName": "", "pipelineTaskName": "", "error": {}}
    values = {"run_id": step_environment, "curve_points": 10, "status": status}
    run(finish.python_func, tmp_path / "root" / "finish", values, {}, ("report", "card"))  # type: ignore[attr-defined]


def test_an_input_that_names_no_prefix_is_one_line(
    step_environment: str, define: Callable[[Stage], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    define(counting())
    old = {"name": "policy", "uri": "s3://moonflow/old/counted/1/manifest.json", "metadata": {"step": "counted"}}
    with pytest.raises(SystemExit):
        run(after, tmp_path / "root", {"run_id": step_environment}, {"policy": old}, ("made", "metrics", "card"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("counted: input policy has no manifest_uri in its metadata: ") and "p00_run_id" in line
