"""The GitOps repository: what is promoted is what is committed there (a Kustomize overlay per environment).

Argo CD, or `kubectl apply -k`, takes it from there; a rollback is `git revert`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from model.errors import MoonflowError

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
BRANCH = "main"
PUSH_ATTEMPTS = 5
# The bot's name, given per command: nobody's Git configuration is read for it or changed by it.
IDENTITY = ["-c", "user.name=moonflow", "-c", "user.email=moonflow@localhost", "-c", "commit.gpgsign=false"]


@dataclass(frozen=True)
class Promoted:
    """What an environment serves: a checkpoint's address, its manifest's digest, and the commit that says so."""

    uri: str
    manifest_sha256: str
    commit: str


def commit_promotion(repository: str, environment: str, uri: str, manifest_sha256: str, message: str) -> Promoted:
    """Commit the checkpoint to the environment's overlay and push it.

    A repository that does not exist yet (a local path) or is empty is begun with our manifests. The same checkpoint
    again yields the same commit. Someone else's push in between is fetched and built upon.

    Args:
        repository: path or URL of the bare repository.
        environment: name of a folder in ``overlays/``.
        uri: the checkpoint's prefix in the object store.
        manifest_sha256: digest of its manifest.
        message: the commit message; its first line is the subject.

    Raises:
        MoonflowError: Git fails, or there is no such overlay.
    """
    _create_if_missing(repository)
    rejected = ""
    for _ in range(PUSH_ATTEMPTS):
        with _clone(repository) as clone:
            if not _has_commits(clone):
                shutil.copytree(MANIFESTS, clone, dirs_exist_ok=True)
                _commit(clone, "Begin with moonflow's serving manifests\n")
            overlay = _overlay(clone, environment)
            if _read(overlay) == (uri, manifest_sha256):
                return Promoted(uri, manifest_sha256, _last_commit(clone, overlay))
            _write(overlay, uri, manifest_sha256)
            _commit(clone, message)
            pushed = _git(clone, "push", "--quiet", "origin", f"HEAD:{BRANCH}", check=False)
            if pushed.returncode == 0:
                return Promoted(uri, manifest_sha256, _last_commit(clone, overlay))
            rejected = pushed.stderr.strip()
            # Git words the same loss in three ways, by whether it is seen before, at, or while taking the lock.
            if not any(word in rejected for word in ("fetch first", "non-fast-forward", "cannot lock ref")):
                break
    raise MoonflowError(f"pushing the promotion to {repository} failed: {_one_line(rejected)}")


def read_promoted(repository: str, environment: str) -> Promoted:
    """What is committed for an environment; raises MoonflowError when nothing is."""
    with _clone(repository) as clone:
        if not _has_commits(clone):
            raise MoonflowError(f"the GitOps repository {repository} is empty; run the promote step first")
        overlay = _overlay(clone, environment)
        uri, manifest_sha256 = _read(overlay)
        if uri == "none":
            raise MoonflowError(f"nothing is promoted to {environment} in {repository}; run the promote step first")
        return Promoted(uri, manifest_sha256, _last_commit(clone, overlay))


def _read(overlay: Path) -> tuple[str, str]:
    values = dict(literal.split("=", 1) for literal in _literals(_load(overlay), overlay))
    return values.get("CHECKPOINT_URI", "none"), values.get("CHECKPOINT_SHA256", "none")


def _write(overlay: Path, uri: str, manifest_sha256: str) -> None:
    document = _load(overlay)  # ruamel keeps the comments and the order, so that the diff is two lines
    _literals(document, overlay)[:] = [f"CHECKPOINT_URI={uri}", f"CHECKPOINT_SHA256={manifest_sha256}"]
    text = StringIO()
    _yaml().dump(document, text)
    overlay.write_text(text.getvalue())


def _literals(document: dict, overlay: Path) -> list[str]:
    for generator in document.get("configMapGenerator", []):
        if generator.get("name") == "checkpoint":
            return generator["literals"]
    raise MoonflowError(f"{overlay.parent.name}/{overlay.name} has no configMapGenerator named checkpoint; restore it")


def _load(overlay: Path) -> dict:
    return _yaml().load(overlay.read_text())


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml


def _overlay(clone: Path, environment: str) -> Path:
    path = clone / "overlays" / environment / "kustomization.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in (clone / "overlays").glob("*"))) or "none"
        raise MoonflowError(f"the GitOps repository has no overlay {environment!r}; it has: {known}")
    return path


def _create_if_missing(repository: str) -> None:
    path = Path(repository)
    if "://" in repository or "@" in repository or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _git(path.parent, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(path))


@contextmanager
def _clone(repository: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="moonflow-gitops-") as folder:
        clone = Path(folder) / "clone"
        _git(Path(folder), "clone", "--quiet", repository, str(clone))
        if not _has_commits(clone):  # whatever the reader's init.defaultBranch says
            _git(clone, "symbolic-ref", "HEAD", f"refs/heads/{BRANCH}")
        yield clone


def _has_commits(clone: Path) -> bool:
    return _git(clone, "rev-parse", "--quiet", "--verify", "HEAD", check=False).returncode == 0


def _commit(clone: Path, message: str) -> None:
    _git(clone, "add", "--all")
    _git(clone, *IDENTITY, "commit", "--quiet", "--message", message)


def _last_commit(clone: Path, path: Path) -> str:
    return _git(clone, "log", "-1", "--format=%H", "--", str(path.relative_to(clone))).stdout.strip()


def _git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}  # never wait for a password; messages as matched above
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if check and done.returncode:
        raise MoonflowError(f"git {arguments[0]} failed: {_one_line(done.stderr)}; check MOONFLOW_GITOPS_REPO")
    return done


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
