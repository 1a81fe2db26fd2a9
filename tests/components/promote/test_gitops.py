"""Promotion into a real bare repository, by real Git."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.promote.gitops import MANIFESTS, commit_promotion, read_promoted
from model.errors import MoonflowError

URI, DIGEST = "s3://moonflow/runs/tiny/parl/1", "a" * 64


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=repository, check=True, capture_output=True, text=True).stdout


def commits(repository: Path) -> list[str]:
    return git(repository, "log", "--format=%H", "main").split()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "gitops.git"


def test_first_promotion_begins_the_repository_and_changes_two_lines(repository: Path):
    promoted = commit_promotion(str(repository), "local", URI, DIGEST, "Promote tiny\n\ndigit_string 0.95\n")
    assert read_promoted(str(repository), "local") == promoted
    assert commits(repository)[0] == promoted.commit
    assert len(commits(repository)) == 2  # our manifests, then the promotion
    numbers = git(repository, "show", "--numstat", "--format=", "main").split()
    assert numbers == ["2", "2", "overlays/local/kustomization.yaml"]
    assert "digit_string 0.95" in git(repository, "log", "-1", "--format=%B", "main")


def test_the_same_checkpoint_is_the_same_commit(repository: Path):
    first = commit_promotion(str(repository), "local", URI, DIGEST, "Promote")
    assert commit_promotion(str(repository), "local", URI, DIGEST, "Promote again") == first
    assert len(commits(repository)) == 2


def test_environments_are_apart(repository: Path):
    commit_promotion(str(repository), "local", URI, DIGEST, "Promote")
    with pytest.raises(MoonflowError, match="nothing is promoted to prod"):
        read_promoted(str(repository), "prod")
    with pytest.raises(MoonflowError, match="no overlay 'staging'; it has: dev, local, prod"):
        commit_promotion(str(repository), "staging", URI, DIGEST, "Promote")


def test_concurrent_promotions_all_land(repository: Path):
    commit_promotion(str(repository), "local", URI, DIGEST, "Promote")

    def promote(number: int) -> str:
        environment = ("local", "dev", "prod")[number]
        uri = f"{URI}{number}"
        return commit_promotion(str(repository), environment, uri, str(number) * 64, f"Promote {number}").commit

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(promote, range(3)))
    assert set(made) <= set(commits(repository))
    assert len(commits(repository)) == 5
    found = {environment: read_promoted(str(repository), environment).uri for environment in ("local", "dev", "prod")}
    assert found == {"local": f"{URI}0", "dev": f"{URI}1", "prod": f"{URI}2"}


def test_a_push_that_a_hook_refuses_is_an_error_with_its_words(repository: Path):
    commit_promotion(str(repository), "local", URI, DIGEST, "Promote")
    hook = repository / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no promotions on Fridays >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(MoonflowError, match="no promotions on Fridays"):
        commit_promotion(str(repository), "local", URI, "b" * 64, "Promote")
    assert read_promoted(str(repository), "local").manifest_sha256 == DIGEST


def test_an_empty_repository_has_nothing_promoted(repository: Path):
    git(repository.parent, "init", "--bare", "--quiet", str(repository))
    with pytest.raises(MoonflowError, match="is empty; run the promote step first"):
        read_promoted(str(repository), "local")


def test_an_unreachable_repository_is_named_in_one_line(tmp_path: Path):
    with pytest.raises(MoonflowError, match="git clone failed") as caught:
        read_promoted(str(tmp_path / "absent.git"), "local")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("environment", ["local", "dev", "prod"])
def test_the_promoted_overlay_builds_and_carries_the_digest(repository: Path, tmp_path: Path, environment: str):
    commit_promotion(str(repository), environment, URI, DIGEST, "Promote")
    git(tmp_path, "clone", "--quiet", str(repository), "clone")
    built = subprocess.run(
        ["kubectl", "kustomize", f"clone/overlays/{environment}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"CHECKPOINT_SHA256: {DIGEST}" in built.replace('"', "")
    assert f"CHECKPOINT_URI: {URI}" in built
    assert "kind: Deployment" in built and "kind: Service" in built


def test_no_secret_is_kept_in_the_manifests():
    for path in MANIFESTS.rglob("*.yaml"):
        assert "kind: Secret" not in path.read_text(), path
        assert "SECRET_ACCESS_KEY=" not in path.read_text(), path
