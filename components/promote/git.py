"""Git as a subprocess: nobody's configuration is changed, and the token is on no command line and in no file."""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from model.errors import MoonflowError

BRANCH = "main"
TOKEN = "MOONFLOW_GIT_TOKEN"
"""Environment variable with the access token for pushes and for the forge; from the Secret moonflow-git."""
# The bot's name, given per command.
_IDENTITY = ["-c", "user.name=moonflow", "-c", "user.email=moonflow@localhost", "-c", "commit.gpgsign=false"]
_LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_SILENT_S = 60  # a connection on which nothing moves for so long is given up


def git(folder: Path, *arguments: str, url: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git in ``folder``; with ``url`` it may show the token to that server.

    Raises:
        MoonflowError: with ``check``, when it fails, in one line that does not hold the token.
    """
    environment = {key: value for key, value in os.environ.items() if key not in (*_LOCAL, TOKEN)}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}  # never wait for a password
    environment |= _settings(url)
    done = subprocess.run(
        ["git", *_IDENTITY, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    done.stderr = _without_token(done.stderr)
    if check and done.returncode:
        hint = "; check MOONFLOW_GITOPS_REPO" if url else ""
        raise MoonflowError(f"git {arguments[0]} failed: {one_line(done.stderr)}{hint}")
    return done


def is_remote(url: str) -> bool:
    """Whether a repository's address is a URL or an SSH address rather than a path, as Git tells them apart."""
    return "://" in url or ":" in url.split("/", 1)[0]


@contextmanager
def clone(url: str) -> Iterator[Path]:
    """A clone in a temporary folder while the body runs; MoonflowError when the repository cannot be read."""
    if is_remote(url) and urlsplit(url).scheme not in ("http", "https", "file"):
        raise MoonflowError(
            f"MOONFLOW_GITOPS_REPO is {url}: the images have no SSH client; write https://HOST/OWNER/NAME and give the "
            f"token in {TOKEN}"
        )
    if "@" in urlsplit(url).netloc:
        raise MoonflowError(f"MOONFLOW_GITOPS_REPO holds credentials: leave them out and give the token in {TOKEN}")
    with tempfile.TemporaryDirectory(prefix="moonflow-gitops-") as folder:
        path = Path(folder) / "clone"
        git(Path(folder), "clone", "--quiet", url, str(path), url=url)
        # Whatever the remote's HEAD or the reader's init.defaultBranch says.
        if resolve(path, f"refs/remotes/origin/{BRANCH}"):
            git(path, "checkout", "--quiet", "-B", BRANCH, f"origin/{BRANCH}")
        else:
            git(path, "symbolic-ref", "HEAD", f"refs/heads/{BRANCH}")
        yield path


def create_if_missing(url: str) -> None:
    """Begin a bare repository at a local path that is not there yet."""
    path = Path(url)
    if is_remote(url) or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        git(path.parent, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(made))
        with suppress(OSError):  # whole or not at all, and the first of several wins
            made.rename(path)


def has_commits(path: Path) -> bool:
    return resolve(path, "HEAD") != ""


def resolve(path: Path, name: str) -> str:
    """The commit that a name stands for, "" if there is none."""
    found = git(path, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def commit_all(path: Path, message: str) -> None:
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", message)


def last_commit(clone: Path, path: Path) -> str:
    """The newest commit that changed a file."""
    return git(clone, "log", "-1", "--format=%H", "--", str(path.relative_to(clone))).stdout.strip()


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _settings(url: str) -> dict[str, str]:
    """Configuration by environment: unlike ``-c`` or a URL with credentials, it shows in no process list."""
    settings = {"http.lowSpeedLimit": "1", "http.lowSpeedTime": str(_SILENT_S)}
    token, parts = os.environ.get(TOKEN, ""), urlsplit(url)
    if token and parts.scheme in ("http", "https"):
        # For this server only: a redirect elsewhere does not get it.
        settings[f"http.{parts.scheme}://{parts.netloc}/.extraHeader"] = f"Authorization: Basic {_basic(token)}"
    first = int(os.environ.get("GIT_CONFIG_COUNT", 0) or 0)
    variables = {"GIT_CONFIG_COUNT": str(first + len(settings))}
    for number, (key, value) in enumerate(settings.items(), start=first):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _basic(token: str) -> str:
    # Forges take the token as the password; GitHub's app tokens insist on this user name, others on none.
    return base64.b64encode(f"x-access-token:{token}".encode()).decode()


def _without_token(text: str) -> str:
    if token := os.environ.get(TOKEN, ""):
        text = text.replace(token, "***").replace(_basic(token), "***")
    return text
