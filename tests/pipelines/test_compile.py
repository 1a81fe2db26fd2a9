"""The files that ``moonflow compile`` writes: what Kubeflow's UI shows of them, and what Kubernetes takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.boundary.errors import MoonflowError
from pipelines.compile import compile_kubernetes, version_name
from pipelines.profile import load_profile
from tests.manifests.schemas import FOLDER, problems
from tests.pipelines.shipped import SHIPPED, compiled, documents

YAML_1_1 = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
APPLY_LIMIT = 262_144  # bytes of annotations, into which kubectl apply copies the object


def profile_of(objects: list[dict[str, Any]]) -> str:
    """The name of the shipped profile that they were compiled from."""
    named = {load_profile(name).run.name: name for name in SHIPPED}
    return named[objects[0]["metadata"]["name"].removeprefix("moonflow-")]


def steps_of(objects: list[dict[str, Any]]) -> list[str]:
    return list(load_profile(profile_of(objects)).steps)


QUICK = ("k25", "base", "post_train", "smoke")
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SHIPPED]


@pytest.fixture(scope="module", params=NAMES)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp(request.param) / "objects.yaml"
    compile_kubernetes(load_profile(request.param), path, "team-a", "1.2.0")
    return documents(path)


def test_the_objects_fit_their_definitions(objects: list[dict[str, Any]]) -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"the CRD schemas are not at {FOLDER}")
    assert [each["kind"] for each in objects] == ["Pipeline", "PipelineVersion"]
    assert [problems(each) for each in objects] == [[], []]


def test_the_objects_can_be_applied(objects: list[dict[str, Any]]) -> None:
    for each in objects:
        assert len(json.dumps(each, separators=(",", ":"))) < APPLY_LIMIT * 0.8  # as kubectl writes it


def test_argo_cd_makes_the_pipeline_first_and_keeps_older_versions(objects: list[dict[str, Any]]) -> None:
    pipeline, version = (each["metadata"]["annotations"] for each in objects)
    wave = "argocd.argoproj.io/sync-wave"
    assert int(pipeline[wave]) < int(version[wave])
    assert version["argocd.argoproj.io/sync-options"] == "Prune=false"
    assert objects[1]["spec"]["pipelineName"] == objects[0]["metadata"]["name"]
    assert {each["metadata"]["labels"]["app.kubernetes.io/name"] for each in objects} == {"moonflow"}


@pytest.mark.slow
def test_the_objects_carry_the_whole_pipeline(objects: list[dict[str, Any]]) -> None:
    made = (objects[1]["spec"]["pipelineSpec"], objects[1]["spec"]["platformSpec"])
    assert made == compiled(profile_of(objects))


def fits(kind: str, value: object) -> bool:
    """KFP writes whole numbers as doubles; the UI shows them whole."""
    if kind == "NUMBER_INTEGER":
        return isinstance(value, float) and value.is_integer()
    return isinstance(value, {"NUMBER_DOUBLE": float, "STRING": str, "BOOLEAN": bool}[kind])


def test_parameters_are_ready_for_kubeflows_form(objects: list[dict[str, Any]]) -> None:
    parameters = objects[1]["spec"]["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]
    phases = ["p00_", *(f"p{phase:02d}_{step}_" for phase, step in enumerate(steps_of(objects), start=1))]
    for name, parameter in parameters.items():
        # A YAML 1.1 reader takes y and n for booleans, and then the server refuses the pipeline.
        assert len(name) > 1 and name not in YAML_1_1
        assert any(name.startswith(phase) for phase in phases), name
        assert len(parameter["description"]) > 10 and "\n" not in parameter["description"], name
        assert "defaultValue" in parameter and parameter["isOptional"], f"{name}: a run starts without typing anything"
        assert fits(parameter["parameterType"], parameter["defaultValue"]), name
    groups = [next(i for i, phase in enumerate(phases) if name.startswith(phase)) for name in sorted(parameters)]
    assert groups == sorted(groups), "the form sorts by name: the phases stay together and in order"


def test_every_step_shows_a_card_and_the_report_is_html(objects: list[dict[str, Any]]) -> None:
    components = objects[1]["spec"]["pipelineSpec"]["components"]
    for step in steps_of(objects):
        outputs = components[f"comp-{step.replace('_', '-')}"]["outputDefinitions"]["artifacts"]
        kinds = {name: artifact["artifactType"]["schemaTitle"] for name, artifact in outputs.items()}
        assert kinds["card"] == "system.Markdown"
        assert kinds.get("report" if step == "finish" else "metrics") in ("system.HTML", "system.Metrics")


def test_the_same_source_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order of sets: a version is compared with what is on the server."""
    code = (
        "import sys; from pathlib import Path; from pipelines.compile import compile_ir;"
        "from pipelines.profile import load_profile; compile_ir(load_profile('k25'), Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{seed}.yaml")], env=environment, check=True)
    assert (tmp_path / "1.yaml").read_bytes() == (tmp_path / "2.yaml").read_bytes()


def test_a_version_is_named_as_kubernetes_wants_it() -> None:
    tiny = load_profile("tiny")
    assert version_name(tiny, "0.1.0-3") == "moonflow-tiny-0-1-0-3"
    for version in ("", "Version", "1_0", "-1", "1." + "0" * 80):
        with pytest.raises(MoonflowError, match="--version"):
            version_name(tiny, version)
