"""``moonflow promote``: what an environment serves and served before, and the way back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.promote import champion, gitops, registry
from components.promote.forge import Forge
from components.promote.gitops import Entry
from model.errors import MoonflowError
from pipelines.profile import load_profile
from pipelines.run_folder import made_by_a_run
from pipelines.services import REPOSITORY, Services

SHOWN = 10
"""Commits that the history shows."""


@dataclass(frozen=True)
class Where:
    """A GitOps repository, an environment in it, and the registry alias that follows it."""

    repository: str
    environment: str
    alias: str
    run_dir: Path | None


def where(run_dir: Path | None, repository: str, environment: str, alias: str) -> Where:
    """From the command's arguments; MoonflowError unless they name one repository and one environment."""
    if (run_dir is None) == (not repository):
        raise MoonflowError("give a run's folder, or --repository with --environment")
    if run_dir is None:
        if not environment:
            raise MoonflowError("--repository needs --environment: the overlay to look at, for example prod")
        return Where(repository, environment, alias or "champion", None)
    run_dir = made_by_a_run(run_dir)
    profile = load_profile(str(run_dir / "profile.toml"))
    promoted_to, served = profile.step("promote").model_dump(), profile.step("serve").model_dump()
    path = str(run_dir / REPOSITORY)
    return Where(path, environment or promoted_to["environment"], alias or served["alias"], run_dir)


def show(place: Where) -> None:
    """Print what the environment serves and the newest commits that changed it."""
    promoted = gitops.read_promoted(place.repository, place.environment)
    print(f"{place.environment} serves {promoted.uri}")
    print(f"  manifest sha256 {promoted.manifest_sha256}, commit {promoted.commit}")
    entries = gitops.history(place.repository, place.environment)
    force = gitops.newest_promotion(entries)
    for entry in entries[:SHOWN]:
        print(f"{'*' if entry == force else ' '} {entry.commit[:12]} {entry.subject}")


def roll_back(place: Where, *, dry_run: bool) -> None:
    """Take the promotion in force back by ``git revert`` and move the alias to what Git says then.

    One call after another goes one promotion back, not one each: where Git is rolled back already, what is missing of
    it is finished and nothing more. Where a forge is configured the revert is a pull request; the same command, after
    its merge, moves the alias.

    Raises:
        MoonflowError: nothing is promoted, or Git, the forge or MLflow is away.
    """
    entries = gitops.history(place.repository, place.environment)
    with _registry(place):
        target = gitops.newest_promotion(entries)
        if rollback := gitops.rollback_in_force(entries):
            if not (behind := _behind(place, rollback)):
                print(_already(place, rollback, target))
            elif dry_run:
                print(f"would finish the rollback {rollback.commit[:12]}: move {place.alias} to {behind}")
            else:
                print(f"finished the rollback {rollback.commit[:12]}: {_follow(place, rollback.reverts)}")
            return
        if target is None:
            raise MoonflowError(f"{place.environment} has no promotion to roll back in {place.repository}")
        if dry_run:
            print(f"would revert {target.commit[:12]} ({target.subject}) and move {place.alias} to what Git says then")
            return
        forge = Forge.from_env(place.repository)
        proposal = gitops.revert(place.repository, place.environment, target, review=forge is not None)
        if forge is not None and proposal.branch:
            title = f'Revert "{target.subject}"'
            body = f"This reverts commit {target.commit}."
            request = forge.ensure(proposal.branch, proposal.commit, title, body)
            print(f"{request.url} reverts {target.commit[:12]}; merge it, then run this again to move {place.alias}")
            return
        print(f"reverted {target.commit[:12]} ({target.subject}) by {proposal.commit[:12]}")
        print(_follow(place, target.commit))


def _already(place: Where, rollback: Entry, target: Entry | None) -> str:
    """Why there is nothing to do, and how to go further back."""
    told = f"{place.environment} is already rolled back by {rollback.commit[:12]}, "
    if target is None:
        return f"{told}to nothing"
    return (
        f"{told}to {target.commit[:12]} ({target.subject}); to go further back, git revert {target.commit[:12]} in "
        f"{place.repository} and run this again"
    )


def _behind(place: Where, rollback: Entry) -> str:
    """What the alias should point at after a rollback, "" if it does."""
    promoted = gitops.find_promoted(place.repository, place.environment)
    wanted = registry.find(promoted.manifest_sha256) if promoted else None
    name = wanted.name if wanted else _model(place, rollback.reverts)
    now = registry.aliased(name, place.alias)
    if (now.number if now else "") == (wanted.number if wanted else ""):
        return ""
    return f"version {wanted.number}" if wanted else "nothing"


def _follow(place: Where, reverted: str) -> str:
    """Move the alias after ``reverted`` was taken back, and say where to."""
    version = champion.follow(place.repository, place.environment, _model(place, reverted), place.alias)
    if version is None:
        return f"{place.environment} serves nothing now; the alias {place.alias} is removed"
    return f"{place.environment} serves version {version.number} of {version.name} again; it is {place.alias}"


def _model(place: Where, promotion: str) -> str:
    """The registered model's name of a promotion's commit."""
    digest = gitops.digest_at(place.repository, place.environment, promotion)
    if (version := registry.find(digest)) is None:
        raise MoonflowError(f"no model version has manifest_sha256 {digest}: move the alias {place.alias} by hand")
    return version.name


@contextmanager
def _registry(place: Where) -> Iterator[None]:
    """The MLflow of a run's folder while the body runs; else the one that the environment names."""
    if place.run_dir is None:
        yield
        return
    with Services.start(place.run_dir) as services:
        before = dict(os.environ)
        os.environ.update(services.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
