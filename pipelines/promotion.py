"""``moonflow promote``: what an environment serves and served before, and the way back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.promote import champion, gitops, registry, retrievable, signing
from components.promote.forge import Forge
from components.promote.history import Entry, History
from components.promote.overlay import NOTHING, Served
from components.runtime.store import ObjectStore
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
    past = gitops.read_history(place.repository, place.environment)
    if past.served == NOTHING:
        raise MoonflowError(f"nothing is promoted to {place.environment} in {place.repository}: run the promote step")
    print(f"{place.environment} serves {past.served.uri}")
    print(f"  manifest sha256 {past.served.manifest_sha256}, commit {past.last.commit}")
    for entry in past.entries[:SHOWN]:
        print(f"{'*' if entry == past.in_force else ' '} {entry.commit[:12]} {entry.subject}")


def roll_back(place: Where, *, dry_run: bool) -> None:
    """Take the promotion in force back by ``git revert`` and move the alias to what Git says then.

    One call after another goes one promotion back, not one each: where Git is rolled back already, what is missing of
    it is finished and nothing more. Where a forge is configured the revert is a pull request; the same command, after
    its merge, moves the alias.

    Raises:
        MoonflowError: nothing is promoted, what was served before can no longer be served, or Git, the forge, MLflow or
            the store is away.
    """
    past = gitops.read_history(place.repository, place.environment)
    with _registry(place):
        target = past.in_force
        if rollback := past.rollback:
            if not (behind := _behind(place, rollback)):
                print(_already(place, rollback, target))
            elif dry_run:
                print(f"would finish the rollback {rollback.commit[:12]}: move {place.alias} to {behind}")
            else:
                print(f"finished the rollback {rollback.commit[:12]}: {_follow(place, rollback.before)}")
            return
        if target is None:
            raise MoonflowError(f"{place.environment} has no promotion to roll back in {place.repository}")
        _must_lead_somewhere(place, past)
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
        print(_follow(place, target.after))


def _must_lead_somewhere(place: Where, past: History) -> None:
    """MoonflowError unless what the rollback goes back to can be served; names the next older one that can."""
    if past.standing[-2].after == NOTHING:
        return
    store, key = ObjectStore.from_env(), signing.given_key(signing.PUBLIC_KEY)
    store.check()  # a store that is away is not taken for one that has lost everything
    back_to, *older = [entry for entry in reversed(past.standing[:-1]) if entry.after != NOTHING]
    if not (problem := retrievable.problem(store, back_to.after, key)):
        return
    told = (
        f"{place.environment} is not rolled back: it would go to {back_to.commit[:12]} ({back_to.subject}), which "
        f"cannot be served ({problem}); "
    )
    whole = next((entry for entry in older if not retrievable.problem(store, entry.after, key)), None)
    if whole is None:
        raise MoonflowError(f"{told}no older one can either: promote another checkpoint")
    undone = past.standing[past.standing.index(whole) + 1 :]
    commands = " && ".join(entry.undo for entry in reversed(undone))
    raise MoonflowError(
        f"{told}the next older one that can is {whole.commit[:12]} ({whole.subject}): {commands} in a clone of "
        f"{place.repository}, push that and run this again"
    )


def _already(place: Where, rollback: Entry, target: Entry | None) -> str:
    """Why there is nothing to do, and how to go further back."""
    told = f"{place.environment} is already rolled back by {rollback.commit[:12]}, "
    if target is None:
        return f"{told}to nothing"
    return (
        f"{told}to {target.commit[:12]} ({target.subject}); to go further back, {target.undo} in a clone of "
        f"{place.repository}, push that and run this again"
    )


def _behind(place: Where, rollback: Entry) -> str:
    """What the alias should point at after a rollback, "" if it does."""
    promoted = gitops.find_promoted(place.repository, place.environment)
    wanted = registry.find(promoted.manifest_sha256) if promoted else None
    name = wanted.name if wanted else _model(place, rollback.before)
    now = registry.aliased(name, place.alias)
    if (now.number if now else "") == (wanted.number if wanted else ""):
        return ""
    return f"version {wanted.number}" if wanted else "nothing"


def _follow(place: Where, taken_back: Served) -> str:
    """Move the alias after a promotion was taken back, and say where to."""
    version = champion.follow(place.repository, place.environment, _model(place, taken_back), place.alias)
    if version is None:
        return f"{place.environment} serves nothing now; the alias {place.alias} is removed"
    return f"{place.environment} serves version {version.number} of {version.name} again; it is {place.alias}"


def _model(place: Where, promoted: Served) -> str:
    """The registered model's name of what was promoted."""
    digest = promoted.manifest_sha256
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
