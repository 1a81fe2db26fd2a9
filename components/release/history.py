"""What an environment served, commit by commit.

The overlay's content decides, not the commit messages: after a promotion, the overlay names another checkpoint; after a
rollback, it names again what an earlier promotion replaced. So it does not matter whether a change came by a push, a
merge, a squash, `git revert`, a forge's button, or an editor. Messages decide one thing only: whether a commit that
returns to an earlier checkpoint is a new promotion. It is if its message has a Promotion-Id that was not there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal

from components.release import overlay
from components.release.git import git, one_line, output
from components.release.overlay import LARGEST, NOTHING, Served
from model.boundary.errors import MoonflowError

TRAILER = "Promotion-Id"
"""The trailer that identifies a promotion in its commit message: ``Promotion-Id: <environment>/<run>/<digest>``."""


@dataclass(frozen=True)
class HistoryEntry:
    """One change of an overlay on the main branch, and what was served before and after it.

    ``commit`` made the change, even if a merge brought it to the main branch; ``merge``: whether it is itself a merge.
    """

    commit: str
    subject: str
    kind: Literal["promotion", "rollback", "other"]
    before: Served
    after: Served
    merge: bool = False

    @property
    def undo(self) -> str:
        """The command that takes it back."""
        return f"git revert {'-m 1 ' if self.merge else ''}{self.commit[:12]}"


@dataclass(frozen=True)
class History:
    """The main branch's changes of an overlay.

    ``entries`` are newest first. Rollbacks go back through ``standing``: the overlay's beginning, then the promotions
    that no rollback has taken back, oldest first. ``last`` is the change that made the overlay what it is now.
    """

    entries: tuple[HistoryEntry, ...]
    standing: tuple[HistoryEntry, ...]
    last: HistoryEntry
    promotions: dict[tuple[str, str], str]

    @property
    def served(self) -> Served:
        return self.last.after

    @property
    def in_force(self) -> HistoryEntry | None:
        """The promotion of what is served, if a rollback can take it back."""
        return self.standing[-1] if len(self.standing) > 1 else None

    @property
    def rollback(self) -> HistoryEntry | None:
        """The newest rollback, if no promotion followed it."""
        return self.last if self.last.kind == "rollback" else None

    def made(self, promotion_id: str, manifest_sha256: str) -> str:
        """The commit of a promotion, whatever followed it; "" if it is not on the main branch."""
        return self.promotions.get((promotion_id, manifest_sha256), "")


def read(folder: Path, environment: str) -> History:
    """The history of a clone's main branch; MoonflowError if its overlay does not say clearly what is served."""
    path = overlay.path_of(folder, environment)
    overlay.read(path)
    commits = _commits(folder)
    blobs = _blobs(folder, path.relative_to(folder).as_posix(), commits)
    said = _said(folder, blobs.values())
    states: dict[str, Served | None] = {}
    for commit in commits.values():  # parents before children
        # An overlay that cannot be read counts as saying what it said before.
        before = states[commit.parents[0]] if commit.parents else None
        states[commit.hash] = (said[blobs[commit.hash]] or before) if blobs[commit.hash] else None
    return _walk(environment, commits, blobs, states)


@dataclass(frozen=True)
class _Commit:
    hash: str
    parents: tuple[str, ...]
    subject: str
    message: str

    @property
    def promotion_ids(self) -> list[str]:
        # Any line: a forge's squash may add its own lines after it. Only newlines end one, so that no control character
        # within a line begins another.
        lines = (line.rstrip() for line in self.message.split("\n"))
        return [line.removeprefix(f"{TRAILER}: ") for line in lines if line.startswith(f"{TRAILER}: ")]


def _walk(
    environment: str, commits: dict[str, _Commit], blobs: dict[str, str], states: dict[str, Served | None]
) -> History:
    entries: list[HistoryEntry] = []
    standing: list[HistoryEntry] = []
    last: HistoryEntry | None = None
    promotions: dict[tuple[str, str], str] = {}
    blob, before = "", NOTHING
    for commit, brought in _main_line(commits):
        # The commits that changed what the overlay says, among those that this one brings.
        makers = [part for part in brought if states[part.hash] != _first(states, part)]
        after = states[commit.hash]
        named = False
        for part in makers:
            digest = (states[part.hash] or NOTHING).manifest_sha256
            for name in part.promotion_ids:
                if (name, digest) not in promotions:  # an id that was there before is only quoted
                    promotions[name, digest] = part.hash
                    named |= states[part.hash] == after and _is_of(name, environment, digest)
        if blobs[commit.hash] == blob:
            continue
        blob = blobs[commit.hash]
        # If a merge brought the change and one commit made it, show that one: its revert keeps the rest of the merge.
        made_by = [part for part in makers if states[part.hash] == after and len(part.parents) < 2]
        alone = len(made_by) == 1 and (_first(states, made_by[0]) or NOTHING) == before
        shown = made_by[0] if alone else commit
        entry = HistoryEntry(
            shown.hash,
            one_line(shown.subject),
            _kind(standing, before, after, named),
            before,
            after or NOTHING,
            merge=len(shown.parents) > 1,
        )
        entries.append(entry)
        before = entry.after
        if after is None:  # removed: what comes next is a new beginning
            standing, last = [], None
        elif not standing or entry.kind == "promotion":
            standing.append(entry)
            last = entry
        elif entry.kind == "rollback":
            while standing[-1].after != after:
                standing.pop()
            last = entry
    if last is None:
        raise MoonflowError(f"no commit of the GitOps repository says what {environment} serves: restore its overlay")
    return History(tuple(reversed(entries)), tuple(standing), last, promotions)


def _kind(
    standing: list[HistoryEntry], before: Served, after: Served | None, named: bool
) -> Literal["promotion", "rollback", "other"]:
    if not standing or after is None or after == before:
        return "other"
    return "promotion" if named or after not in (entry.after for entry in standing) else "rollback"


def _is_of(promotion_id: str, environment: str, manifest_sha256: str) -> bool:
    return promotion_id.startswith(f"{environment}/") and promotion_id.endswith(f"/{manifest_sha256}")


def _first(states: dict[str, Served | None], commit: _Commit) -> Served | None:
    return states[commit.parents[0]] if commit.parents else None


def _main_line(commits: dict[str, _Commit]) -> Iterator[tuple[_Commit, list[_Commit]]]:
    """The main branch's own commits, oldest first, each with all that it brought: itself, and what a merge merged."""
    line: list[_Commit] = []
    commit: _Commit | None = next(reversed(commits.values()), None)
    while commit is not None:
        line.append(commit)
        commit = commits[commit.parents[0]] if commit.parents else None
    order = {name: number for number, name in enumerate(commits)}
    seen: set[str] = set()
    for commit in reversed(line):
        ahead, brought = [commit], []
        while ahead:
            part = ahead.pop()
            if part.hash not in seen:
                seen.add(part.hash)
                brought.append(part)
                ahead.extend(commits[parent] for parent in part.parents)
        yield commit, sorted(brought, key=lambda part: order[part.hash])


def _commits(folder: Path) -> dict[str, _Commit]:
    """Every commit of the main branch, parents before children. Messages hold no NUL, because Git ends them there."""
    told = output(folder, "log", "-z", "--topo-order", "--reverse", "--format=%H%x00%P%x00%s%x00%B", "HEAD")
    fields = iter(told.split("\0"))
    found = {}
    for name, parents, subject, message in zip(fields, fields, fields, fields, strict=False):
        found[name] = _Commit(name, tuple(parents.split()), subject, message)
    return found


def _blobs(folder: Path, name: str, commits: Iterable[str]) -> dict[str, str]:
    """Commit -> object of its overlay, "" where there is none."""
    asked = "".join(f"{commit}:{name}\n" for commit in commits)
    told = output(folder, "cat-file", "--batch-check=%(objecttype) %(objectname)", stdin=asked).splitlines()
    return {
        commit: line.removeprefix("blob ") if line.startswith("blob ") else ""
        for commit, line in zip(commits, told, strict=True)
    }


def _said(folder: Path, blobs: Iterable[str]) -> dict[str, Served | None]:
    """Object -> what it says is served, None where it cannot be read."""
    wanted = sorted(set(blobs) - {""})
    asked = "".join(f"{blob}\n" for blob in wanted)
    sizes = output(folder, "cat-file", "--batch-check=%(objectsize)", stdin=asked).split()
    small = [blob for blob, size in zip(wanted, sizes, strict=True) if int(size) <= LARGEST]
    data = git(folder, "cat-file", "--batch=%(objectsize)", stdin="".join(f"{blob}\n" for blob in small)).stdout
    stream = BytesIO(data)
    said: dict[str, Served | None] = dict.fromkeys(wanted)
    for blob in small:
        said[blob] = _parsed(stream.read(int(stream.readline())))
        stream.readline()
    return said


@lru_cache(maxsize=1024)
def _parsed(data: bytes) -> Served | None:
    try:
        return overlay.parse(data, "")
    except MoonflowError:
        return None
