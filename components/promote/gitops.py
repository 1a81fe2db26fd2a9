"""The GitOps repository: what is promoted is what is committed there (a Kustomize overlay per environment).

Argo CD, or `kubectl apply -k`, takes it from there; a rollback is `git revert`. Where a forge is configured, a change
goes to a branch and a pull request; otherwise it goes to the main branch.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.promote import overlay
from components.promote.git import (
    BRANCH,
    clone,
    commit_all,
    create_if_missing,
    git,
    has_commits,
    is_remote,
    last_commit,
    one_line,
    resolve,
)
from components.promote.overlay import Change
from model.errors import MoonflowError

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
PUSH_SECONDS = 60.0
"""How long a push that others win is tried again; each round is built upon what they pushed."""
TRAILER = "Promotion-Id"
_REVERTS = re.compile(r"^This reverts commit ([0-9a-f]{40})", re.MULTILINE)


@dataclass(frozen=True)
class Promoted:
    """What an environment serves: a checkpoint's address, its manifest's digest, and the commit that says so."""

    uri: str
    manifest_sha256: str
    commit: str


@dataclass(frozen=True)
class Proposal:
    """A change to an environment: its commit and the branch that holds it, "" once the main branch does."""

    commit: str
    branch: str = ""


@dataclass(frozen=True)
class Entry:
    """One commit that changed an overlay; ``reverts`` is the commit that it takes back, if it is a rollback."""

    commit: str
    subject: str
    promotion: bool
    reverts: str


def promote(
    repository: str, environment: str, change: Change, message: str, promotion_id: str, *, review: bool = False
) -> Proposal:
    """Commit a checkpoint to the environment's overlay and push it.

    A local path that does not exist yet or is empty is begun with our manifests. A remote repository is not: what a
    cluster follows holds its own addresses and sizes, which ours would undo. The same promotion again yields the same
    commit, also when another one or a rollback followed it: a retry never promotes twice. Someone else's push in
    between is fetched and built upon.

    Args:
        repository: path or URL of the bare repository.
        environment: name of a folder in ``overlays/``.
        message: the commit message; its first line is the subject.
        promotion_id: names this promotion for good, e.g. environment, run and digest.
        review: push to the branch ``promote/<environment>/<short digest>``, for a pull request.

    Raises:
        MoonflowError: Git fails, there is no such overlay, or a remote repository is empty.
    """
    create_if_missing(repository)
    trailer = f"{TRAILER}: {promotion_id}"
    branch = f"promote/{environment}/{change.manifest_sha256[:12]}"

    def attempt(folder: Path) -> Proposal | None:
        if not has_commits(folder):
            if is_remote(repository):
                raise MoonflowError(
                    f"the GitOps repository {repository} has no branch {BRANCH}: push your edited manifests/ there "
                    "first (manifests/README.md, Install)"
                )
            shutil.copytree(MANIFESTS, folder, dirs_exist_ok=True)
            commit_all(folder, "Begin with moonflow's serving manifests\n")
        if made := _search(folder, trailer):
            return Proposal(made)
        path = overlay.path_of(folder, environment)
        if overlay.read(path) == (change.uri, change.manifest_sha256):
            return Proposal(last_commit(folder, path))
        target = branch if review else BRANCH
        proposed = resolve(folder, f"refs/remotes/origin/{branch}") if review else ""
        if proposed and _merges(folder, proposed, path):
            return Proposal(proposed, branch)
        overlay.write(path, change)
        commit_all(folder, f"{message.rstrip()}\n\n{trailer}\n")
        # A branch of ours that no longer merges is built anew; the lease refuses if somebody changed it meanwhile.
        lease = [f"--force-with-lease={_ref(branch)}:{proposed}"] if review else []
        if not _push(folder, repository, *lease, f"HEAD:{_ref(target)}"):
            return None
        return Proposal(resolve(folder, "HEAD"), branch if review else "")

    return _until_pushed(repository, attempt)


def read_promoted(repository: str, environment: str) -> Promoted:
    """What is committed for an environment; raises MoonflowError when nothing is."""
    if (promoted := find_promoted(repository, environment)) is None:
        raise MoonflowError(f"nothing is promoted to {environment} in {repository}; run the promote step first")
    return promoted


def find_promoted(repository: str, environment: str) -> Promoted | None:
    """What is committed for an environment, None if that is nothing."""
    with clone(repository) as folder:
        if not has_commits(folder):
            raise MoonflowError(f"the GitOps repository {repository} is empty; run the promote step first")
        return _promoted(folder, environment)


def history(repository: str, environment: str) -> list[Entry]:
    """The commits that changed an environment's overlay, newest first."""
    with clone(repository) as folder:
        return _history(folder, environment) if has_commits(folder) else []


def digest_at(repository: str, environment: str, commit: str) -> str:
    """The manifest digest that an environment had at a commit."""
    with clone(repository) as folder:
        git(folder, "checkout", "--quiet", "--detach", commit)
        return overlay.read(overlay.path_of(folder, environment))[1]


def newest_promotion(entries: list[Entry]) -> Entry | None:
    """The promotion in force: the newest one that no rollback has taken back."""
    reverted: set[str] = set()
    for entry in entries:
        if entry.commit in reverted:
            continue  # neither a promotion nor a rollback that was itself taken back counts
        if entry.reverts:
            reverted.add(entry.reverts)
        elif entry.promotion:
            return entry
    return None


def rollback_in_force(entries: list[Entry]) -> Entry | None:
    """The newest rollback, if neither a promotion nor its own revert followed it; other changes do not count."""
    promotions = {entry.commit for entry in entries if entry.promotion}
    reverted: set[str] = set()
    for entry in entries:
        if entry.commit in reverted:
            continue
        if entry.reverts in promotions:
            return entry
        if entry.promotion:
            return None
        reverted.add(entry.reverts)
    return None


def revert(repository: str, environment: str, entry: Entry, *, review: bool = False) -> Proposal:
    """Take a promotion back by ``git revert`` and push that, to the main branch or for review.

    Raises:
        MoonflowError: it is no longer the promotion in force, later changes conflict with the revert, or Git fails.
    """
    branch = f"rollback/{environment}/{entry.commit[:12]}"

    def attempt(folder: Path) -> Proposal | None:
        if newest_promotion(_history(folder, environment)) != entry:
            raise MoonflowError(
                f"{environment} changed while it was rolled back: {entry.commit[:10]} is no longer what it serves; "
                "look at its history and run the command again"
            )
        path = overlay.path_of(folder, environment)
        proposed = resolve(folder, f"refs/remotes/origin/{branch}") if review else ""
        if proposed and _merges(folder, proposed, path):
            return Proposal(proposed, branch)
        if git(folder, "revert", "--no-edit", entry.commit, check=False).returncode:
            raise MoonflowError(
                f"git revert {entry.commit[:10]} conflicts with later changes of {environment}; revert it by hand"
            )
        lease = [f"--force-with-lease={_ref(branch)}:{proposed}"] if review else []
        if not _push(folder, repository, *lease, f"HEAD:{_ref(branch if review else BRANCH)}"):
            return None
        return Proposal(resolve(folder, "HEAD"), branch if review else "")

    return _until_pushed(repository, attempt)


def standing(repository: str, environment: str, promotion_id: str) -> tuple[Promoted | None, bool]:
    """What is committed for an environment, and whether the main branch has a promotion, whatever followed it."""
    with clone(repository) as folder:
        if not has_commits(folder):
            return None, False
        return _promoted(folder, environment), _search(folder, f"{TRAILER}: {promotion_id}") != ""


def renew(repository: str, environment: str, branch: str) -> Proposal | None:
    """Build a proposed branch anew on the main branch if what was merged meanwhile conflicts with it.

    None if the branch is gone; MoonflowError when Git fails.
    """
    gone = Proposal("")

    def attempt(folder: Path) -> Proposal | None:
        if not (proposed := resolve(folder, f"refs/remotes/origin/{branch}")):
            return gone
        if _merges(folder, proposed, overlay.path_of(folder, environment)):
            return Proposal(proposed, branch)
        # The overlay's lines are one statement: where both changed them, the proposal's stand.
        git(folder, "cherry-pick", "--strategy-option=theirs", proposed)
        if not _push(folder, repository, f"--force-with-lease={_ref(branch)}:{proposed}", f"HEAD:{_ref(branch)}"):
            return None
        return Proposal(resolve(folder, "HEAD"), branch)

    proposal = _until_pushed(repository, attempt)
    return None if proposal is gone else proposal


def _ref(branch: str) -> str:
    return f"refs/heads/{branch}"


def _until_pushed(repository: str, attempt: Callable[[Path], Proposal | None]) -> Proposal:
    """Try on a fresh clone until nobody else's push comes in between."""
    deadline = time.monotonic() + PUSH_SECONDS
    while True:
        with clone(repository) as folder:
            if (done := attempt(folder)) is not None:
                return done
        if time.monotonic() > deadline:
            raise MoonflowError(f"pushing to {repository} lost against other pushes for {PUSH_SECONDS:g} s; run again")
        time.sleep(random.uniform(0.0, 0.5))


def _push(folder: Path, repository: str, *arguments: str) -> bool:
    """Push; False if the remote's branches moved since the clone, MoonflowError if it refuses for another reason."""
    pushed = git(folder, "push", "--quiet", "origin", *arguments, url=repository, check=False)
    if pushed.returncode == 0:
        return True
    # Git words a lost race in several ways and an own hook's refusal in any: that the branches moved is the sure sign.
    refs = git(folder, "for-each-ref", "--format=%(objectname)\t%(refname:strip=3)", "refs/remotes/origin").stdout
    cloned = {name: commit for commit, name in (line.split("\t") for line in refs.splitlines()) if name != "HEAD"}
    if cloned != _remote_heads(folder, repository) or "cannot lock ref" in pushed.stderr:
        return False
    raise MoonflowError(f"pushing to {repository} failed: {one_line(pushed.stderr)}")


def _remote_heads(folder: Path, repository: str) -> dict[str, str]:
    """Branch -> commit on the remote."""
    listed = git(folder, "ls-remote", "--heads", "origin", url=repository).stdout
    rows = (line.split("\t") for line in listed.splitlines())
    return {name.removeprefix("refs/heads/"): commit for commit, name in rows}


def _merges(folder: Path, proposed: str, path: Path) -> bool:
    """Whether the overlay is on the main branch as it was where a proposed branch began."""
    name = path.relative_to(folder).as_posix()
    began = git(folder, "merge-base", "HEAD", proposed, check=False).stdout.strip()
    return began != "" and git(folder, "diff", "--quiet", began, "HEAD", "--", name, check=False).returncode == 0


def _promoted(folder: Path, environment: str) -> Promoted | None:
    path = overlay.path_of(folder, environment)
    uri, manifest_sha256 = overlay.read(path)
    return None if uri == overlay.NONE else Promoted(uri, manifest_sha256, last_commit(folder, path))


def _search(folder: Path, line: str) -> str:
    """The newest commit on the main branch with a line in its message, "" if there is none."""
    return git(folder, "log", "-1", "--format=%H", "--fixed-strings", f"--grep={line}").stdout.strip()


def _history(folder: Path, environment: str) -> list[Entry]:
    name = overlay.path_of(folder, environment).relative_to(folder).as_posix()
    entries = []
    for record in git(folder, "log", "--format=%H%x00%s%x00%b%x1e", "--", name).stdout.split("\x1e"):
        if record.strip():
            commit, subject, body = record.strip("\n").split("\x00")
            reverts = _REVERTS.search(body)
            entries.append(Entry(commit, subject, f"\n{TRAILER}: " in f"\n{body}", reverts[1] if reverts else ""))
    return entries
