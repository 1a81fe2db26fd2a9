"""A component folder as a Kubeflow user takes it: its file compiles alone, and metadata.yaml says what it needs."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.runtime.config import meaning
from components.runtime.steps import ALL_STEPS, config_class
from pipelines.doctor_cluster import CRDS
from pipelines.profile import load_profile

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ["name", "stability", "dependencies", "lastVerified"]
STABILITY = ("experimental", "alpha", "beta", "stable")
SEMANTIC = re.compile(r"(>=|<=|==)?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
NO_DEFAULT = {"run_id", "cell", "status"}
"""The run, the loop's item, and what Kubeflow fills in: no Config says a value of theirs."""

# `kfp dsl compile --py FILE` for one file after another, each without what the files before it had imported.
COMPILE = """
import sys
from pathlib import Path
from kfp.cli.compile_ import compile_

ours = ("component", "components", "model", "pipelines")
for file in map(Path, sys.argv[2:]):
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]
    output = Path(sys.argv[1], file.parent.name).with_suffix(".yaml")
    compile_.main(["--py", str(file), "--output", str(output)], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The YAML of every component, compiled outside of the source tree."""
    folder = tmp_path_factory.mktemp("compiled")
    files = [str(ROOT / "components" / step / "component.py") for step in ALL_STEPS]
    subprocess.run([sys.executable, "-c", COMPILE, str(folder), *files], cwd=folder, check=True)
    texts = {step: (folder / f"{step}.yaml").read_text() for step in ALL_STEPS}
    return {step: yaml.load(text, Loader=yaml.CSafeLoader) for step, text in texts.items()}


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_component_file_compiles_alone(compiled: dict[str, dict[str, Any]], step: str) -> None:
    assert compiled[step]["pipelineInfo"]["name"] == step.replace("_", "-")
    assert list(compiled[step]["components"]) == [f"comp-{step.replace('_', '-')}"]


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_compiled_component_shows_what_the_schema_says(compiled: dict[str, dict[str, Any]], step: str) -> None:
    (component,) = compiled[step]["components"].values()
    fields = config_class(step).model_fields
    parameters = component["inputDefinitions"]["parameters"]
    for name, field in fields.items():
        if name in parameters:
            shown = parameters[name]
            assert (shown["defaultValue"], shown["isOptional"]) == (field.default, True), name
            assert shown["description"] == meaning(field), name
    assert {name for name, shown in parameters.items() if "defaultValue" not in shown} <= NO_DEFAULT
    for side in ("inputDefinitions", "outputDefinitions"):
        for kind in component.get(side, {}).values():
            assert {name for name, shown in kind.items() if len(shown.get("description", "")) < 10} == set()


def load(step: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "components" / step / "metadata.yaml").read_text())


def problems(metadata: dict[str, Any]) -> list[str]:
    """What kubeflow/pipelines-components' validator refuses (source: its scripts/validate_metadata)."""
    found = []
    if [field for field in metadata if field not in ("tags", "ci", "links")] != REQUIRED:
        return [f"fields {list(metadata)}"]
    if not isinstance(metadata["name"], str):
        found.append("name")
    if metadata["stability"] not in STABILITY:
        found.append("stability")
    dependencies = metadata["dependencies"]
    if not {"kubeflow"} <= set(dependencies) <= {"kubeflow", "external_services"}:
        found.append("dependencies")
    if all(each["name"] != "Pipelines" for each in dependencies.get("kubeflow", [])):
        found.append("Pipelines")
    for each in [*dependencies.get("kubeflow", []), *dependencies.get("external_services", [])]:
        if not SEMANTIC.fullmatch(str(each.get("version"))) or not isinstance(each.get("name"), str):
            found.append("version")
    if not all(isinstance(tag, str) for tag in metadata.get("tags", [])):
        found.append("tags")
    verified = metadata["lastVerified"]
    if not isinstance(verified, datetime) or verified.tzinfo is None or verified > datetime.now(UTC):
        found.append("lastVerified")
    return found


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_metadata_is_as_pipelines_components_wants_it(step: str) -> None:
    metadata = load(step)
    assert problems(metadata) == []
    assert metadata["name"] == step and metadata["tags"]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda each: each.update(stability="ready"), "stability"),
        (lambda each: each["dependencies"].pop("kubeflow"), "Pipelines"),
        (lambda each: each["dependencies"]["external_services"][0].update(version="4.48"), "version"),
        (lambda each: each.update(tags=[1]), "tags"),
        (lambda each: each.update(lastVerified=datetime(2099, 1, 1, tzinfo=UTC)), "lastVerified"),
        (lambda each: each.update(lastVerified="2026-11-29"), "lastVerified"),
    ],
)
def test_wrong_metadata_is_noticed(change: Callable[[dict[str, Any]], object], refused: str) -> None:
    metadata = copy.deepcopy(load("serve"))
    change(metadata)
    assert refused in problems(metadata)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_metadata_names_the_versions_that_are_installed(step: str) -> None:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = dict(line.split("==") for line in lines)
    (trainer,) = {line[3].split()[3] for line in CRDS if "install Kubeflow Trainer" in line[3]}
    wanted = {
        "Pipelines": f">={pins['kfp']}",
        "Trainer": f">={trainer}.0",
        "S3 object store (boto3)": f">={pins['boto3']}",
        "MLflow": f">={pins['mlflow']}",
    }
    dependencies = [each for kind in load(step)["dependencies"].values() for each in kind]
    named = {each["name"]: each["version"] for each in dependencies}
    assert {name: version for name, version in named.items() if name in wanted} == {
        name: version for name, version in wanted.items() if name != "Trainer" or trained_by_jobs(step)
    }
    forges = {"GitHub REST API", "Gitea REST API"} if step in ("promote", "serve") else set()
    assert set(named) - set(wanted) == forges


def trained_by_jobs(step: str) -> bool:
    """Whether a shipped profile makes the step a TrainJob."""
    profile = load_profile("k25")
    return step in profile.steps and profile.placement(step).launcher == "trainjob"
