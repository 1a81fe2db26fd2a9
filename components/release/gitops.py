"""The GitOps repository: what is promoted is what is committed there (a Kustomize overlay per environment).

Argo CD, or `kubectl apply -k`, applies it to the cluster; a rollback is `git revert`. With a forge, a change goes to a
branch and a pull request; without one, to the main branch.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.release import history, overlay
from components.release.git import (
    BRANCH,
    clone,
    commit_all,
    create_if_missing,
    failure,
    git,
    has_commits,
    is_remote,
    one_line,
    output,
    resolve,
)
from components.release.history import TRAILER, History, HistoryEntry
from components.release.overlay import NOTHING, Change, Served
from model.boundary.errors import MoonflowError

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
PUSH_SECONDS = 60.0
"""How long a push is tried again while others push first; each attempt builds on what they pushed."""


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


def promote(
    repository: str, environment: str, change: Change, message: str, promotion_id: str, *, review: bool = False
) -> Proposal:
    """Commit a checkpoint to the environment's overlay and push it.

    A local repository that does not exist yet, or is empty, begins with our manifests. A remote one does not: it holds
    the addresses and sizes of a cluster, which our manifests would overwrite. The same promotion again yields the same
    commit, even if another one or a rollback followed it: a retry never promotes twice. If someone else pushes in
    between, the commit is made again on top of that push.

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
    if promotion_id.split() != [promotion_id] or not promotion_id.isprintable():
        raise MoonflowError(f"{one_line(promotion_id)!r} cannot name a promotion: take white space out of the run's id")
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
        past = history.read(folder, environment)
        if made := past.made(promotion_id, change.manifest_sha256):
            return Proposal(made)
        if past.served == change.served:
            return Proposal(past.last.commit)
        path = overlay.path_of(folder, environment)
        proposed = _proposed(folder, branch, path, change.served) if review else ""
        if proposed and _merges(folder, proposed, path):
            return Proposal(proposed, branch)
        overlay.write(path, change)
        commit_all(folder, f"{message.rstrip()}\n\n{TRAILER}: {promotion_id}\n")
        return _pushed(folder, repository, branch if review else "")

    return _until_pushed(repository, attempt)


def read_promoted(repository: str, environment: str) -> Promoted:
    """What is committed for an environment; raises MoonflowError when nothing is."""
    if (promoted := find_promoted(repository, environment)) is None:
        raise MoonflowError(f"nothing is promoted to {environment} in {repository}; run the promote step first")
    return promoted


def find_promoted(repository: str, environment: str) -> Promoted | None:
    """What is committed for an environment; None if nothing is."""
    return _promoted(read_history(repository, environment))


def read_history(repository: str, environment: str) -> History:
    """What an environment served; MoonflowError when the repository is empty or the overlay cannot be read."""
    with clone(repository) as folder:
        if not has_commits(folder):
            raise MoonflowError(f"the GitOps repository {repository} is empty; run the promote step first")
        return history.read(folder, environment)


def revert(repository: str, environment: str, entry: HistoryEntry, *, review: bool = False) -> Proposal:
    """Take a promotion back by ``git revert`` and push that, to the main branch or for review.

    Raises:
        MoonflowError: it is no longer the promotion in force, reverting it would not bring back what was served before,
            or Git fails.
    """
    branch = f"rollback/{environment}/{entry.commit[:12]}"

    def attempt(folder: Path) -> Proposal | None:
        past = history.read(folder, environment)
        if past.in_force != entry:
            raise MoonflowError(
                f"{environment} changed while it was rolled back: {entry.commit[:10]} is no longer what it serves; "
                "look at its history and run the command again"
            )
        path, wanted = overlay.path_of(folder, environment), past.standing[-2].after
        proposed = _proposed(folder, branch, path, wanted) if review else ""
        if proposed and _merges(folder, proposed, path):
            return Proposal(proposed, branch)
        of_merge = ["--mainline", "1"] if entry.merge else []
        if git(folder, "revert", "--no-edit", *of_merge, entry.commit, check=False).returncode:
            raise MoonflowError(
                f"git revert {entry.commit[:10]} conflicts with later changes of {environment}; revert it by hand"
            )
        if overlay.read(overlay.path_of(folder, environment)) != wanted:
            raise MoonflowError(
                f"git revert {entry.commit[:10]} alone would not bring {environment} back to {wanted.uri}; write that "
                f"into its overlay by hand (manifest sha256 {wanted.manifest_sha256})"
            )
        return _pushed(folder, repository, branch if review else "")

    return _until_pushed(repository, attempt)


def standing(
    repository: str, environment: str, promotion_id: str, manifest_sha256: str
) -> tuple[Promoted | None, bool]:
    """What is committed for an environment, and whether the main branch has a promotion, whatever followed it."""
    with clone(repository) as folder:
        if not has_commits(folder):
            return None, False
        past = history.read(folder, environment)
        return _promoted(past), past.made(promotion_id, manifest_sha256) != ""


def renew(repository: str, environment: str, branch: str) -> Proposal | None:
    """Rebuild a proposed branch on the main branch if what was merged meanwhile conflicts with it.

    None if the branch is gone; MoonflowError when Git fails.
    """
    gone = Proposal("")

    def attempt(folder: Path) -> Proposal | None:
        if not (proposed := _remote_branch(folder, branch)):
            return gone
        if _merges(folder, proposed, overlay.path_of(folder, environment)):
            return Proposal(proposed, branch)
        # Where both sides changed the overlay's lines, the proposal's count. Reviewers' commits are kept, without their
        # merges of the main branch, which is there already.
        commits = output(folder, "rev-list", "--reverse", "--no-merges", f"HEAD..{proposed}").split()
        git(folder, "cherry-pick", "--strategy-option=theirs", "--keep-redundant-commits", *commits)
        return _pushed(folder, repository, branch)

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


def _pushed(folder: Path, repository: str, branch: str) -> Proposal | None:
    """Push HEAD to a branch for review, or to the main branch ("").

    None if the remote's branches moved since the clone; MoonflowError if it refuses for another reason.
    """
    # A branch of ours that no longer merges is rebuilt; the lease refuses if somebody changed it meanwhile.
    lease = [f"--force-with-lease={_ref(branch)}:{_remote_branch(folder, branch)}"] if branch else []
    pushed = git(
        folder, "push", "--quiet", *lease, "origin", f"HEAD:{_ref(branch or BRANCH)}", url=repository, check=False
    )
    if pushed.returncode == 0:
        return Proposal(resolve(folder, "HEAD"), branch)
    # Git has several messages for a lost race, and a hook's refusal can say anything: branches that moved are certain.
    cloned = output(folder, "for-each-ref", "--format=%(objectname)\t%(refname:strip=3)", "refs/remotes/origin")
    there = output(folder, "ls-remote", "--heads", "origin", url=repository)
    if _heads(cloned) != _heads(there) or b"cannot lock ref" in pushed.stderr:
        return None
    raise failure(pushed, f"pushing to {repository}")


def _heads(listed: str) -> dict[str, str]:
    """Branch -> commit, of lines that name both."""
    rows = (line.split("\t") for line in listed.split("\n") if line)
    return {name.removeprefix("refs/heads/"): commit for commit, name in rows if name != "HEAD"}


def _remote_branch(folder: Path, branch: str) -> str:
    return resolve(folder, f"refs/remotes/origin/{branch}")


def _proposed(folder: Path, branch: str, path: Path, served: Served) -> str:
    """The commit of a branch for review, "" if there is none or it proposes something else."""
    if not (commit := _remote_branch(folder, branch)):
        return ""
    name = path.relative_to(folder).as_posix()
    found = git(folder, "show", f"{commit}:{name}", check=False)
    try:
        return commit if found.returncode == 0 and overlay.parse(found.stdout, name) == served else ""
    except MoonflowError:
        return ""


def _merges(folder: Path, proposed: str, path: Path) -> bool:
    """Whether the main branch's overlay is still what it was where a proposed branch began."""
    name = path.relative_to(folder).as_posix()
    began = git(folder, "merge-base", "HEAD", proposed, check=False).stdout.decode().strip()
    return began != "" and git(folder, "diff", "--quiet", began, "HEAD", "--", name, check=False).returncode == 0


def _promoted(past: History) -> Promoted | None:
    return None if past.served == NOTHING else Promoted(*past.served, past.last.commit)
