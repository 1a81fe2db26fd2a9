"""The alias that follows Git: it names the version that is committed for an environment and has answered there."""

from __future__ import annotations

import os

from components.release import gitops, registry
from components.release.git import REPOSITORY
from components.release.registry import Version
from model.boundary.errors import MoonflowError


def repository_from_env() -> str:
    """Where the GitOps repository is; MoonflowError if the environment does not say."""
    if not (repository := os.environ.get(REPOSITORY, "")):
        raise MoonflowError(f"{REPOSITORY} is not set: give the path or URL of the GitOps repository")
    return repository


def crown(repository: str, environment: str, alias: str, version: Version, commit: str) -> None:
    """Record that a version answered in an environment, and let the alias follow Git.

    Two promotions may end at the same time. Each first tags its version and then reads Git until alias and commit
    agree. So the last one to read sees the other's tag, and an older version never overwrites a newer one.

    Raises:
        MoonflowError: MLflow or Git is away.
    """
    mark = f"served.{environment}"
    registry.describe(version.name, version.number, {mark: commit})
    promoted = gitops.find_promoted(repository, environment)
    while promoted is not None:
        # What is committed now but has not answered yet is crowned by its own serve check.
        now = registry.find(promoted.manifest_sha256)
        if now is None or mark not in now.tags:
            return
        registry.point(now.name, alias, now.number)
        seen, promoted = promoted, gitops.find_promoted(repository, environment)
        if promoted == seen:
            return


def follow(repository: str, environment: str, name: str, alias: str) -> Version | None:
    """Point the alias at what Git says, or remove it if Git says nothing; returns the version.

    Raises:
        MoonflowError: what Git names is not registered, or MLflow or Git is away.
    """
    promoted = gitops.find_promoted(repository, environment)
    if promoted is None:
        registry.point(name, alias, None)
        return None
    if (version := registry.find(promoted.manifest_sha256)) is None:
        raise MoonflowError(
            f"{environment} serves {promoted.uri}, which no model version has as its manifest_sha256: register it "
            f"again, or move the alias {alias} by hand"
        )
    registry.point(version.name, alias, version.number)
    return version
