"""A run whose gate held or whose promotion went to the wrong place is finished with corrected rules: nothing is trained
or evaluated again. Through the real store, MLflow and Git, on checkpoints with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.release import gitops, registry
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import run_step
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.rollout.embedded import EmbeddedEngine
from tests.published import publish_output
from tests.tiny_folders import write_checkpoint, write_data_folder

pytestmark = pytest.mark.services

CHEAP = {"samples": 2, "samples_intermediate": 2, "well_formed": 0.0, "sigmas": 100.0}


def one_suite(folder: Path) -> Path:
    """Data with held-out tasks of one short suite."""
    write_data_folder(folder, 2)
    index = json.loads((folder / "index.json").read_text())
    index["families"] = {"digit_string": index["families"]["digit_string"]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_corrected_rules_are_applied_to_the_scores_that_are_there(
    step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONFLOW_GITOPS_REPO", str(tmp_path / "gitops.git"))
    store = open_store()
    data = publish_output(store, one_suite(tmp_path / "data"), step_environment, "prepare_data", kind="data")
    parl = publish_output(store, write_checkpoint(tmp_path / "parl"), step_environment, "parl")

    def evaluated(**config: object) -> Manifest:
        return run_step("evaluate", {**CHEAP, **config}, {"data": data.uri, "parl": parl.uri})

    held = evaluated(floors="digit_string=1")
    assert held.extra["decision"] == "hold"

    def untouchable(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was evaluated again")

    monkeypatch.setattr(EmbeddedEngine, "__init__", untouchable)
    model = f"moonflow-{step_environment}"
    evals = evaluated(floors="", margin=0.5, champion=f"{model}@champion")
    assert evals.extra["decision"] == "promote" and evals.extra["evals"] == held.extra["evals"]
    assert evals.extra["config"]["margin"] == 0.5
    with pytest.raises(MoonflowError, match=r"other parameters \(samples 2 -> 3\)"):
        evaluated(floors="", samples=3)


@pytest.fixture
def promotable(step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A checkpoint, its data and an evaluation that lets it through; URIs by input."""
    monkeypatch.setenv("MOONFLOW_GITOPS_REPO", str(tmp_path / "gitops.git"))
    store = open_store()
    data = publish_output(store, one_suite(tmp_path / "data"), step_environment, "prepare_data", kind="data")
    parl = publish_output(store, write_checkpoint(tmp_path / "parl"), step_environment, "parl")
    uris = {"data": data.uri, "checkpoint": parl.uri}
    for index in (0, 1):  # the second as the gate makes it from corrected rules
        folder = tmp_path / f"evals{index}"
        folder.mkdir()
        (folder / "decision.json").write_text(str(index))
        uris[f"evals{index}"] = publish_output(
            store, folder, step_environment, "evaluate", index, kind="evals", parents=(parl.sha256,),
            extra={"decision": "promote", "evals": []},
        ).uri  # fmt: skip
    return uris


@pytest.mark.slow
def test_a_promotion_follows_a_new_decision_and_a_corrected_name(
    promotable: dict[str, str], step_environment: str, tmp_path: Path
) -> None:
    wrong, right = f"wrong-{step_environment}", f"right-{step_environment}"

    def promoted(environment: str, model: str, evals: str) -> Manifest:
        config = {"environment": environment, "model_name": model}
        inputs = {"checkpoint": promotable["checkpoint"], "evals": promotable[evals]}
        return run_step("promote", config, inputs)

    def served(promotion: Manifest, **config: object) -> Manifest:
        return run_step("serve", config, {"data": promotable["data"], "promotion": promotion.uri})

    first = promoted("local", wrong, "evals0")
    served(first, alias="champio")
    again = promoted("local", wrong, "evals1")  # another decision, the same promotion
    assert again.uri != first.uri
    assert (again.extra["commit"], again.extra["version"]) == (first.extra["commit"], first.extra["version"])
    assert served(again, alias="champion").complete
    pointed = registry.aliased(wrong, "champion")
    assert pointed is not None and pointed.number == first.extra["version"]

    elsewhere = promoted("dev", right, "evals1")
    assert elsewhere.extra["model_name"] == right
    repository = str(tmp_path / "gitops.git")
    assert gitops.read_promoted(repository, "dev").commit == elsewhere.extra["commit"] != first.extra["commit"]
