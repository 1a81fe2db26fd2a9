"""``moonflow promote``: show what an environment serves and served before, and roll it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.release import champion, gitops, registry, retrievable, signing
from components.release.forge import Forge
from components.release.history import History, HistoryEntry
from components.release.overlay import NOTHING, Served
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.profile import step_of_run
from pipelines.run_folder import made_by_a_run, services_folder
from pipelines.services import REPOSITORY, exported, visited

SHOWN = 10
"""Commits that the history shows."""


@dataclass(frozen=True)
class Target:
    """A GitOps repository, an environment in it, and the registry alias that follows it."""

    repository: str
    environment: str
    alias: str
    run_dir: Path | None


def target_of(run_dir: Path | None, repository: str, environment: str, alias: str) -> Target:
    """The target that the command's arguments name. MoonflowError unless it is one repository and one environment."""
    if (run_dir is None) == (not repository):
        raise MoonflowError("give a run's folder, or --repository with --environment")
    if run_dir is None:
        if not environment:
            raise MoonflowError("--repository needs --environment: the overlay to look at, for example prod")
        return Target(repository, environment, alias or "champion", None)
    run_dir = made_by_a_run(run_dir)
    promoted_to, served = (step_of_run(run_dir, step).model_dump() for step in ("promote", "serve"))
    path = str(run_dir / REPOSITORY)
    return Target(path, environment or promoted_to["environment"], alias or served["alias"], run_dir)


def show(target: Target) -> None:
    """Print what the environment serves and the newest commits that changed it."""
    past = gitops.read_history(target.repository, target.environment)
    if past.served == NOTHING:
        raise MoonflowError(f"nothing is promoted to {target.environment} in {target.repository}: run the promote step")
    print(f"{target.environment} serves {past.served.uri}")
    print(f"  manifest sha256 {past.served.manifest_sha256}, commit {past.last.commit}")
    for entry in past.entries[:SHOWN]:
        print(f"{'*' if entry == past.in_force else ' '} {entry.commit[:12]} {entry.subject}")


def roll_back(target: Target, *, dry_run: bool) -> None:
    """Revert the promotion in force by ``git revert`` and move the alias to the version that Git names afterwards.

    Repeated calls go back one promotion in all, not one each: if Git is rolled back already, only the rest of that
    rollback is done. If a forge is configured, the revert is a pull request; the same command moves the alias after the
    merge.

    Raises:
        MoonflowError: nothing is promoted, what was served before can no longer be served, or Git, the forge, MLflow or
            the store cannot be reached.
    """
    past = gitops.read_history(target.repository, target.environment)
    with _registry(target):
        in_force = past.in_force
        if rollback := past.rollback:
            if not (missed := _missed(target, rollback)):
                print(_already(target, rollback, in_force))
            elif dry_run:
                print(f"would finish the rollback {rollback.commit[:12]}: move {target.alias} to {missed}")
            else:
                print(f"finished the rollback {rollback.commit[:12]}: {_follow(target, rollback.before)}")
            return
        if in_force is None:
            raise MoonflowError(f"{target.environment} has no promotion to roll back in {target.repository}")
        _must_lead_somewhere(target, past)
        if dry_run:
            undone = f"{in_force.commit[:12]} ({in_force.subject})"
            print(f"would revert {undone} and move {target.alias} to what Git names then")
            return
        forge = Forge.from_env(target.repository)
        proposal = gitops.revert(target.repository, target.environment, in_force, review=forge is not None)
        if forge is not None and proposal.branch:
            title = f'Revert "{in_force.subject}"'
            body = f"This reverts commit {in_force.commit}."
            request = forge.ensure(proposal.branch, proposal.commit, title, body)
            print(f"{request.url} reverts {in_force.commit[:12]}; merge it, then run this again to move {target.alias}")
            return
        print(f"reverted {in_force.commit[:12]} ({in_force.subject}) by {proposal.commit[:12]}")
        print(_follow(target, in_force.after))


def _must_lead_somewhere(target: Target, past: History) -> None:
    """Raise MoonflowError unless what the rollback goes back to can be served; name the next older one that can."""
    if past.standing[-2].after == NOTHING:
        return
    store, key = open_store(), signing.given_key(signing.PUBLIC_KEY)
    store.check()  # a store that cannot be reached must not look like one that lost everything
    back_to, *older = [entry for entry in reversed(past.standing[:-1]) if entry.after != NOTHING]
    if not (problem := retrievable.problem(store, back_to.after, key)):
        return
    told = (
        f"{target.environment} is not rolled back: it would go to {back_to.commit[:12]} ({back_to.subject}), which "
        f"cannot be served ({problem}); "
    )
    whole = next((entry for entry in older if not retrievable.problem(store, entry.after, key)), None)
    if whole is None:
        raise MoonflowError(f"{told}no older one can either: promote another checkpoint")
    undone = past.standing[past.standing.index(whole) + 1 :]
    commands = " && ".join(entry.undo for entry in reversed(undone))
    raise MoonflowError(
        f"{told}the next older one that can is {whole.commit[:12]} ({whole.subject}): {commands} in a clone of "
        f"{target.repository}, push that and run this again"
    )


def _already(target: Target, rollback: HistoryEntry, in_force: HistoryEntry | None) -> str:
    """Why there is nothing to do, and how to go further back."""
    told = f"{target.environment} is already rolled back by {rollback.commit[:12]}, "
    if in_force is None:
        return f"{told}to nothing"
    return (
        f"{told}to {in_force.commit[:12]} ({in_force.subject}); to go further back, {in_force.undo} in a clone of "
        f"{target.repository}, push that and run this again"
    )


def _missed(target: Target, rollback: HistoryEntry) -> str:
    """What the alias should point at after a rollback; "" if it already does."""
    promoted = gitops.find_promoted(target.repository, target.environment)
    wanted = registry.find(promoted.manifest_sha256) if promoted else None
    name = wanted.name if wanted else _model(target, rollback.before)
    now = registry.aliased(name, target.alias)
    if (now.number if now else "") == (wanted.number if wanted else ""):
        return ""
    return f"version {wanted.number}" if wanted else "nothing"


def _follow(target: Target, reverted: Served) -> str:
    """Move the alias after a promotion was reverted, and say where to."""
    version = champion.follow(target.repository, target.environment, _model(target, reverted), target.alias)
    if version is None:
        return f"{target.environment} serves nothing now; the alias {target.alias} is removed"
    return f"{target.environment} serves version {version.number} of {version.name} again; it is {target.alias}"


def _model(target: Target, promoted: Served) -> str:
    """The name of the registered model that was promoted."""
    digest = promoted.manifest_sha256
    if (version := registry.find(digest)) is None:
        raise MoonflowError(f"no model version has manifest_sha256 {digest}: move the alias {target.alias} by hand")
    return version.name


@contextmanager
def _registry(target: Target) -> Iterator[None]:
    """Run the body with the MLflow of the run's folder, or without a folder with the one that the environment names."""
    if target.run_dir is None:
        yield
        return
    with visited(services_folder(target.run_dir)) as environment, exported(environment):
        yield
