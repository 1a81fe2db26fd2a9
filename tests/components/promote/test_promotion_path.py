"""evaluate -> promote -> serve through the real store, MLflow, Git and HTTP, on checkpoints with random weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch

from components.promote.export import export
from components.release import fetch as checkpoint
from components.release import gitops, registry, signing
from components.release.fetch import bring
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import run_step
from components.runtime.steps import TRAINING_STEPS
from components.runtime.store.open_store import open_store
from components.serve import endpoint
from components.serve.stage import serving
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.evals.scorer import Evaluation
from model.network.served import as_served
from pipelines.promotion import roll_back, show, target_of
from tests.components.release.git_server import REPOSITORY, Host, git_host
from tests.components.release.promotions import champion_version
from tests.published import publish_output
from tests.tiny_folders import write_checkpoint, write_data_folder

pytestmark = pytest.mark.services

CHEAP = {"samples": 2, "samples_intermediate": 2, "floors": "", "well_formed": 0.0}


@pytest.fixture
def inputs(step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A run whose data and checkpoints stand in the store; URIs by step."""
    monkeypatch.setenv("MOONFLOW_GITOPS_REPO", str(tmp_path / "gitops.git"))
    store = open_store()
    data = write_data_folder(tmp_path / "data")
    uris = {"data": publish_output(store, data, step_environment, "prepare_data", kind="data").uri}
    for seed, step in enumerate(TRAINING_STEPS):
        uris[step] = publish_output(store, write_checkpoint(tmp_path / step, seed), step_environment, step).uri
    return uris


def evaluated(inputs: dict[str, str], **config: object) -> Manifest:
    return run_step("evaluate", {**CHEAP, **config}, inputs)


def test_from_checkpoints_to_an_answer_over_http(inputs: dict[str, str], step_environment: str, tmp_path: Path):
    evals = evaluated(inputs, samples=4, sigmas=100.0)
    rows = evals.extra["evals"]
    steps = list(dict.fromkeys(row["step"] for row in rows))
    assert steps == ["init", *TRAINING_STEPS]
    counts = {(row["step"], row["suite"]): row["n"] for row in rows}
    assert [counts[step, "photo"] for step in ("init", "mid_train", "parl")] == [2, 2, 4]
    assert [counts[step, "wide_search_swarm"] for step in ("init", "mid_train", "parl")] == [2, 2, 2]
    assert {(row["ability"], row["modality"]) for row in rows} >= {
        ("knowledge", "image"),
        ("agentic", "text"),
        ("reasoning", "video"),
    }
    assert evals.extra["decision"] == "promote"
    assert set(evals.extra["swarm"]["parl"]) == {"wide_search_single", "wide_search_swarm"}
    assert set(evals.extra["chance"]) == {row["suite"] for row in rows}
    store = open_store()
    manifests.fetch(store, evals.uri, tmp_path / "evals")
    history = [json.loads(line) for line in (tmp_path / "evals" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == list(range(9))
    assert "eval/digit_string/knowledge/image" in history[0]

    decision = json.loads((tmp_path / "evals" / "decision.json").read_text())
    assert decision["decision"] == "promote" and decision["champion"] is None
    assert decision["candidate"]["uri"] == inputs["parl"]
    assert {rule["rule"] for rule in decision["rules"]} == {"untrained", "well_formed"}
    assert all(rule["passed"] for rule in decision["rules"])
    assert (tmp_path / "evals" / "decision.md").read_text().startswith("**promote**")

    config = {"environment": "local", "model_name": f"moonflow-{step_environment}"}
    promotion = run_step("promote", config, {"checkpoint": inputs["parl"], "evals": evals.uri})
    exported = manifests.read(store, promotion.extra["uri"])
    assert promotion.extra["manifest_sha256"] == exported.sha256
    assert exported.parents == (manifests.read(store, inputs["parl"]).sha256,)
    log = subprocess.run(
        ["git", "log", "-1", "--format=%H%n%B"], cwd=tmp_path / "gitops.git", check=True, capture_output=True, text=True
    ).stdout
    assert log.splitlines()[0] == promotion.extra["commit"]
    assert exported.uri in log and inputs["parl"] in log and "digit_string" in log
    candidate, champion = (registry.aliased(config["model_name"], alias) for alias in ("candidate", "champion"))
    assert candidate is not None and candidate.number == promotion.extra["version"]
    assert candidate.tags["commit"] == promotion.extra["commit"]
    text = mlflow.MlflowClient().get_model_version(config["model_name"], candidate.number).description
    assert promotion.extra["commit"] in text and inputs["parl"] in text, "where it comes from"
    scores = {row["suite"]: row for row in rows if row["step"] == "parl"}
    assert all(f"| {suite} | {row['ability']} | {row['modality']} |" in text for suite, row in scores.items())
    assert evals.extra["markdown"] in text, "why the gate let it through"
    assert champion is None  # nothing has answered yet

    served = run_step("serve", {}, {"data": inputs["data"], "promotion": promotion.uri})
    assert served.extra["endpoint_checked"] is False and served.extra["signature_checked"] is True
    assert served.extra["manifest_sha256"] == exported.sha256
    assert served.extra["question"] and served.extra["image"].startswith("data:image/png;base64,")
    champion = registry.aliased(config["model_name"], "champion")
    assert champion is not None and champion.number == candidate.number


@pytest.fixture
def host(tmp_path: Path, git_token: None, inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The GitOps repository on a Git server with a forge."""
    with git_host(tmp_path / "host") as running:
        monkeypatch.setenv("MOONFLOW_GITOPS_REPO", running.url + REPOSITORY)
        monkeypatch.setenv("MOONFLOW_FORGE", "gitea")
        yield running


@pytest.mark.slow
def test_two_promotions_by_pull_request_and_a_rollback(
    inputs: dict[str, str], host: Host, step_environment: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    model = f"moonflow-{step_environment}"
    gate = {"sigmas": 100.0, "champion": f"{model}@champion"}

    def promoted(run: str, step: str) -> tuple[Manifest, Manifest]:
        monkeypatch.setenv("MOONFLOW_RUN_ID", f"{step_environment}-{run}")
        evals = evaluated({"data": inputs["data"], step: inputs[step]}, **gate)
        to = {"environment": "dev", "model_name": model}
        return evals, run_step("promote", to, {"checkpoint": inputs[step], "evals": evals.uri})

    def serve(promotion: Manifest, timeout: float = 0.0) -> Manifest:
        asked = {"environment": "dev", "merge_timeout": timeout}
        return run_step("serve", asked, {"data": inputs["data"], "promotion": promotion.uri})

    # 1. The first: committed on a branch, served only after the merge, champion only after the answer.
    evals, first = promoted("one", "joint_rl")
    assert evals.extra["champion"] is None
    assert first.extra["pull_request"].endswith("/pulls/1")
    assert "Manifest sha256: " + first.extra["manifest_sha256"] in host.pulls[0]["body"]
    assert "digit_string" in host.pulls[0]["body"]
    with pytest.raises(MoonflowError, match="pulls/1 is not merged after 0 s"):
        serve(first)
    host.merge(1)
    assert serve(first, 30.0).extra["commit"] == first.extra["commit"]
    assert champion_version(model) == first.extra["version"] == "1"

    # 2. The second is compared with it, and takes its place.
    evals, second = promoted("two", "parl")
    assert evals.extra["champion"]["version"] == "1" and evals.extra["champion"]["same_tasks"] is True
    assert any(rule["rule"] == "champion" for rule in evals.extra["rules"])
    assert champion_version(model) == "1"
    host.merge(2)
    serve(second)
    assert champion_version(model) == second.extra["version"] == "2"

    # 3. The way back: a revert that is reviewed like everything else, then the alias.
    target = target_of(None, host.url + REPOSITORY, "dev", "")
    roll_back(target, dry_run=True)
    assert "would revert" in capsys.readouterr().out and host.opened == 2
    for _ in range(2):
        roll_back(target, dry_run=False)
        assert "/pulls/3 reverts" in capsys.readouterr().out
    assert champion_version(model) == "2"
    host.merge(3)
    roll_back(target, dry_run=False)
    assert "serves version 1" in capsys.readouterr().out
    assert champion_version(model) == "1"
    roll_back(target, dry_run=False)
    assert "dev is already rolled back by" in capsys.readouterr().out
    assert champion_version(model) == "1" and host.opened == 3
    show(target)
    shown = capsys.readouterr().out
    assert f"* {first.extra['commit'][:12]}" in shown and first.extra["uri"] in shown

    # 4. A retried step of what was rolled back promotes nothing.
    monkeypatch.setenv("MOONFLOW_RUN_ID", f"{step_environment}-two")
    assert run_step("promote", {"environment": "dev", "model_name": model}, {
        "checkpoint": inputs["parl"], "evals": evals.uri}).extra == second.extra  # fmt: skip
    assert champion_version(model) == "1" and host.opened == 3


def allowed(checkpoint: str, tmp_path: Path, run_id: str, **extra: str) -> Manifest:
    """What an evaluation publishes that lets a checkpoint through."""
    store = open_store()
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "evals.json").write_text("{}")
    return publish_output(
        store, tmp_path / "evals", run_id, "evaluate", kind="evals",
        parents=(manifests.read(store, checkpoint).sha256,), extra={"decision": "promote", **extra},
    )  # fmt: skip


@pytest.mark.slow
def test_champion_is_what_the_synced_endpoint_answers_from(
    inputs: dict[str, str], step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoint, "POLL_S", 0.05)
    evals = allowed(inputs["parl"], tmp_path, step_environment)
    model = f"moonflow-{step_environment}"
    promotion = run_step("promote", {"model_name": model}, {"checkpoint": inputs["parl"], "evals": evals.uri})
    store = open_store()

    def at(folder: Path, timeout: float) -> Manifest:
        with serving(folder, "moonflow", 60) as address:
            config = {"endpoint": address, "start_timeout": timeout}
            return run_step("serve", config, {"data": inputs["data"], "promotion": promotion.uri})

    before = manifests.read(store, inputs["joint_rl"])
    bring(store, before.uri, before.sha256, tmp_path / "before")
    with pytest.raises(MoonflowError, match=f"it answers from weights {before.sha256[:12]}.*synced with Git"):
        at(tmp_path / "before", 0.2)
    assert registry.aliased(model, "champion") is None
    bring(store, promotion.extra["uri"], promotion.extra["manifest_sha256"], tmp_path / "after")
    served = at(tmp_path / "after", 60.0)
    assert served.extra["endpoint_checked"] is True and served.extra["signature_checked"] is False
    assert served.extra["endpoint"].startswith("http://127.0.0.1:")
    champion = registry.aliased(model, "champion")
    assert champion is not None and champion.number == promotion.extra["version"]


@pytest.mark.slow
def test_int4_experts_are_exported_where_int4_was_measured(
    inputs: dict[str, str], step_environment: str, tmp_path: Path
):
    measured = evaluated({name: inputs[name] for name in ("data", "parl")}, expert_precision="int4")
    assert measured.extra["expert_precision"] == "int4"
    evals = allowed(inputs["parl"], tmp_path, f"{step_environment}-allowed", expert_precision="int4")
    given = {"checkpoint": inputs["parl"], "evals": evals.uri}
    with pytest.raises(MoonflowError, match="measured int4 experts, but promote.expert_precision is full"):
        run_step("promote", {"model_name": "m"}, given)
    config = {"model_name": f"moonflow-{step_environment}", "expert_precision": "int4"}
    promotion = run_step("promote", config, given)
    store = open_store()
    exported = manifests.read(store, promotion.extra["uri"])
    assert exported.uri.endswith("-int4") and "quantization_config" in exported.model
    bring(store, exported.uri, exported.sha256, tmp_path / "served", signing.given_key(signing.PUBLIC_KEY))
    served, trained = load_model(tmp_path / "served"), load_model(tmp_path / "parl")
    expected = as_served(trained, "int4").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in served.state_dict().items())
    answered = run_step("serve", {}, {"data": inputs["data"], "promotion": promotion.uri})
    assert answered.extra["manifest_sha256"] == exported.sha256


def test_nothing_is_served_unverified(
    inputs: dict[str, str], step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evals = allowed(inputs["parl"], tmp_path, step_environment)
    model = f"moonflow-{step_environment}"
    promotion = run_step("promote", {"model_name": model}, {"checkpoint": inputs["parl"], "evals": evals.uri})
    monkeypatch.delenv(signing.PUBLIC_KEY)
    with pytest.raises(MoonflowError, match="no public key .*create the ConfigMap moonflow-signing-public") as caught:
        run_step("serve", {}, {"data": inputs["data"], "promotion": promotion.uri})
    assert signing.PUBLIC_KEY in str(caught.value) and "\n" not in str(caught.value)
    assert registry.aliased(model, "champion") is None


def test_a_promotion_that_died_at_any_point_ends_as_one(
    inputs: dict[str, str], step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from components.promote import stage

    evals = allowed(inputs["parl"], tmp_path, step_environment)
    model = f"moonflow-{step_environment}"

    def attempt() -> Manifest:
        return run_step("promote", {"model_name": model}, {"checkpoint": inputs["parl"], "evals": evals.uri})

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, name in (
        (stage.registry, "register"), (stage.gitops, "promote"), (stage.registry, "describe"),
        (stage.StepContext, "publish"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dies)
            with pytest.raises(KeyboardInterrupt):
                attempt()
    done = attempt()
    past = gitops.read_history(os.environ["MOONFLOW_GITOPS_REPO"], "local")
    assert [entry.commit for entry in past.entries if entry.kind == "promotion"] == [done.extra["commit"]]
    assert done.extra["version"] == "1"
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{model}'")) == 1


def test_what_is_not_signed_as_asked_is_not_served(
    inputs: dict[str, str], step_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    store = open_store()
    private, public = signing.key_pair(tmp_path / "own")
    exported = export(store, manifests.read(store, inputs["parl"]), tmp_path / "export", private)
    names = {file.name for file in exported.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "model.sig"} <= names
    assert not names & {"optimizer-00000-of-00001.safetensors", "training_state.json", "metrics.jsonl"}

    def brought(uri: str, sha256: str, key: Path) -> str:
        """What the init container says; empty if it let the checkpoint through."""
        folder = tmp_path / f"served-{len(list(tmp_path.glob('served-*')))}"
        try:
            checkpoint.main(["--uri", uri, "--sha256", sha256, "--to", str(folder), "--public-key", str(key)])
        except SystemExit as refused:
            return str(refused.code)
        return ""

    assert brought(exported.uri, exported.sha256, public) == ""
    again = export(store, manifests.read(store, inputs["parl"]), tmp_path / "again", private)
    assert again == exported  # although a new signature would differ
    other = signing.key_pair(tmp_path / "other")
    assert "the signature of" in brought(exported.uri, exported.sha256, other[1])
    with pytest.raises(MoonflowError, match="if the signing key was changed, delete"):
        export(store, manifests.read(store, inputs["parl"]), tmp_path / "third", other[0])
    raw = manifests.read(store, inputs["parl"])
    assert "is not signed" in brought(raw.uri, raw.sha256, public)
    # Somebody who can write to the store and to Git, but has no key: every digest fits, the signature does not.
    manifests.fetch(store, exported.uri, tmp_path / "forged")
    (tmp_path / "forged" / "config.json").write_text("{}")
    forged = publish_output(store, tmp_path / "forged", step_environment, "forged")
    # Quotes come escaped or not, as the digests' bytes in the same message have it.
    assert re.search(r"Hash mismatch for \\?'config\.json", brought(forged.uri, forged.sha256, public))
    # The same files under a manifest that says something else of them.
    manifests.fetch(store, exported.uri, tmp_path / "relabelled")
    told = exported.model_dump(by_alias=True, exclude={"uri", "files"}) | {"tokens_seen": 10**12}
    relabelled = manifests.publish(store, f"{step_environment}/relabelled/0", tmp_path / "relabelled", **told)
    assert "its manifest is not what was signed" in brought(relabelled.uri, relabelled.sha256, public)
    # What a killed attempt left behind does not keep the next one from serving.
    folder = tmp_path / "restarted"
    folder.mkdir()
    (folder / ".part-0123456789abcdef").write_bytes(b"half")
    bring(store, exported.uri, exported.sha256, folder, public)
    (folder / "modeling.py").write_text("code that nobody signed")
    with pytest.raises(MoonflowError, match="modeling.py is not in the checkpoint's manifest"):
        bring(store, exported.uri, exported.sha256, folder)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_after_its_last_checkpoint(inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    real, asked = Evaluation.outcomes, []

    async def dies_at_the_third(*arguments):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(1)
        return await real(*arguments)

    monkeypatch.setattr(Evaluation, "outcomes", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluated(inputs)
    calls = []

    async def counts(*arguments):
        calls.append(1)
        return await real(*arguments)

    monkeypatch.setattr(Evaluation, "outcomes", counts)
    evals = evaluated(inputs)
    assert len(calls) == 1 + len(TRAINING_STEPS) - 2  # the untrained model is one more, and two were kept
    assert {row["step"] for row in evals.extra["evals"]} == {"init", *TRAINING_STEPS}


def test_what_the_gate_held_is_not_promoted(inputs: dict[str, str]):
    held = evaluated(
        {key: inputs[key] for key in ("data", "vit_pretrain", "zero_vision_sft", "parl")}, floors="digit_string=1.0"
    )
    assert held.extra["decision"] == "hold"
    with pytest.raises(MoonflowError, match=r"does not allow a promotion: digit_string 0\.00 < 1"):
        run_step("promote", {}, {"checkpoint": inputs["parl"], "evals": held.uri})


def test_only_what_was_evaluated_is_promoted(inputs: dict[str, str]):
    evals = evaluated({key: inputs[key] for key in ("data", "vit_pretrain", "zero_vision_sft")}, sigmas=100.0)
    with pytest.raises(MoonflowError, match="did not measure"):
        run_step("promote", {}, {"checkpoint": inputs["parl"], "evals": evals.uri})
