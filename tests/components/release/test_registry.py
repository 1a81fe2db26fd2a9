"""A real MLflow registry on sqlite, without a server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest

from components.release import gitops
from components.release.champion import crown, follow
from components.release.gitops import Promoted
from components.release.registry import Version, aliased, describe, find, register
from model.boundary.errors import MoonflowError
from tests.components.release.promotions import champion_version


@pytest.fixture
def client(own_mlflow: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(own_mlflow)


def made(letter: str, alias: str = "candidate") -> Version:
    digest = letter * 64
    number = register("moonflow", alias, f"s3://b/{letter}", {"manifest_sha256": digest})
    return Version("moonflow", number, {"manifest_sha256": digest})


def test_registers_once_and_moves_the_alias(client: mlflow.MlflowClient):
    assert aliased("moonflow", "candidate") is None  # neither model nor alias
    assert (made("a").number, made("a").number) == ("1", "1")
    assert aliased("moonflow", "champion") is None
    second = made("b")
    describe("moonflow", second.number, {"commit": "c2"}, "scores of **b**")
    describe("moonflow", second.number, {"seen": "yes"})  # tags alone leave the description
    assert client.get_model_version("moonflow", "2").description == "scores of **b**"
    describe("moonflow", second.number, {}, "long" * 2_000)
    assert len(client.get_model_version("moonflow", "2").description) == 5_000
    candidate = aliased("moonflow", "candidate")
    assert candidate is not None and candidate.number == second.number == "2"
    assert candidate.tags["commit"] == "c2"
    assert client.get_model_version("moonflow", "2").source == "s3://b/b"
    assert made("a").number == "1"  # the earlier checkpoint again: no new version
    assert len(client.search_model_versions("name='moonflow'")) == 2
    assert find("b" * 64) == candidate
    assert find("c" * 64) is None


def test_one_checkpoint_registered_at_many_places_at_once_is_one_version(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    made("z")
    real, first = mlflow.MlflowClient.search_model_versions, {threading.get_ident()}

    def nobody_else_yet(*arguments, **named):
        """Every caller's first look comes before anybody's creation: the worst interleaving."""
        if threading.get_ident() in first:
            return real(*arguments, **named)
        first.add(threading.get_ident())
        barrier.wait()
        return []

    barrier = threading.Barrier(3)
    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", nobody_else_yet)
    with ThreadPoolExecutor(3) as pool:
        numbers = {version.number for version in pool.map(lambda _: made("a"), range(3))}
    left = client.search_model_versions(f"name = 'moonflow' and tags.manifest_sha256 = '{'a' * 64}'")
    assert numbers == {str(version.version) for version in left} and len(left) == 1


def test_a_refusal_is_one_line(client: mlflow.MlflowClient):
    with pytest.raises(MoonflowError, match="registering moonflow") as caught:
        made("a", alias="not an alias!")
    assert "\n" not in str(caught.value)


class Git:
    """The committed state of an environment, and what others commit between two looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: Version | None = None
        self.then: list[Version] = []
        monkeypatch.setattr(gitops, "find_promoted", self.find_promoted)

    def find_promoted(self, *_: str) -> Promoted | None:
        seen = self.now
        if self.then:
            self.now = self.then.pop(0)
        return Promoted("s3://b", seen.manifest_sha256, f"commit-{seen.number}") if seen else None


def test_the_champion_is_what_git_says_and_what_has_answered(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    git, one, two = Git(monkeypatch), made("a"), made("b")

    def answered(version: Version) -> None:
        crown("repository", "dev", "champion", version, "commit")

    git.now = one
    answered(one)
    assert champion_version() == "1"
    git.now = two
    answered(one)  # late, or run again: Git is ahead, but the second has not answered yet
    assert champion_version() == "1"
    answered(two)
    assert champion_version() == "2"
    answered(one)  # must not overwrite the newer one
    assert champion_version() == "2"
    git.now, git.then = one, [two]  # the second commit lands, answered, while the first one's alias is moved
    answered(one)
    assert champion_version() == "2"


def test_after_a_rollback_the_alias_follows_and_may_go(client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch):
    git, one = Git(monkeypatch), made("a")
    made("b", alias="champion")
    git.now = one
    version = follow("repository", "dev", "moonflow", "champion")
    assert version is not None and version.number == champion_version() == "1"
    git.now = None
    assert follow("repository", "dev", "moonflow", "champion") is None
    assert champion_version() == ""
    git.now = Version("moonflow", "9", {"manifest_sha256": "f" * 64})
    with pytest.raises(MoonflowError, match="which no model version has"):
        follow("repository", "dev", "moonflow", "champion")
