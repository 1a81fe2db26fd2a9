"""Git as a subprocess with our settings only: no configuration is read or changed, and the token is in no command line
and no file, and goes to no other server."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from model.boundary.errors import MoonflowError, Transient

BRANCH = "main"
REPOSITORY = "MOONFLOW_GITOPS_REPO"
"""Environment variable with the GitOps repository's path or URL."""
TOKEN = "MOONFLOW_GIT_TOKEN"
"""Environment variable with the access token for pushes and for the forge; from the Secret moonflow-git."""
_KEPT = ("GIT_EXEC_PATH", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_CERT", "GIT_SSL_KEY")
"""What Git gets of its caller's GIT_* variables: where its own programs are, and whose certificates count."""
_ISOLATION = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",  # never wait for a password,
    "GIT_ASKPASS": "",  # nor let a window ask for one
    "LC_ALL": "C",
}
_SILENT_S = 60  # seconds without data after which a connection is given up
_SETTINGS = {
    "user.name": "moonflow",
    "user.email": "moonflow@localhost",
    # A redirect would take the token along, to any server that it names.
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": str(_SILENT_S),
    "protocol.allow": "never",
    "protocol.http.allow": "always",
    "protocol.https.allow": "always",
    "protocol.file.allow": "always",
    # A machine's templates may put hooks into each clone; a user's ignore and attributes files would change commits.
    "core.hooksPath": os.devnull,
    "core.excludesFile": os.devnull,
    "core.attributesFile": os.devnull,
    # Nothing goes on in the background in a folder that is about to be removed.
    "gc.auto": "0",
}
# Not fetch.fsckObjects: it refuses repositories for old harmless faults, and we read only one file of them.
_HINTS = {
    "The requested URL returned error: 30": f"the server redirects, which is not followed: write the address that it "
    f"leads to in {REPOSITORY}",
    "Authentication failed": f"check {TOKEN}",
    "could not read Username": f"give a token in {TOKEN}; credential helpers are not asked",
    "certificate": "give your authority's certificates as a PEM file in SSL_CERT_FILE",
    "dubious ownership": "the folder belongs to another user: give an https address, or a repository of your own",
}
"""What Git says about a remote -> what to do."""
# Messages of curl and Git about a server that is away, restarting or overloaded.
_PASSING = (
    "Could not resolve host", "Failed to connect", "Couldn't connect", "Connection refused", "Connection timed out",
    "Connection reset", "Operation too slow", "early EOF", "RPC failed", "Empty reply from server",
    "The requested URL returned error: 5", "The requested URL returned error: 429",
)  # fmt: skip


def git(
    folder: Path, *arguments: str, url: str = "", check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run git in ``folder``; with ``url`` it may show the token to that server.

    Raises:
        MoonflowError: there is no git; with ``check``, it fails. One line that does not hold the token.
    """
    command, environment = ["git", *arguments], _environment(url)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin.encode(), capture_output=True, check=False
        )
    except FileNotFoundError:
        raise MoonflowError("git is not installed or not on PATH: install it") from None
    if check and done.returncode:
        raise failure(done, f"git {arguments[0]}", f"check {REPOSITORY}, or --repository" if url else "")
    return done


def output(folder: Path, *arguments: str, url: str = "", stdin: str = "") -> str:
    """What ``git`` prints; bytes that are no UTF-8 become U+FFFD."""
    return git(folder, *arguments, url=url, stdin=stdin).stdout.decode(errors="replace")


def failure(done: subprocess.CompletedProcess[bytes], doing: str, hint: str = "") -> MoonflowError:
    """The error of a failed git, and what to do (``hint`` if nothing better is known), in one line without the token;
    Transient if the server was away."""
    said = one_line(without_token(done.stderr.decode(errors="replace")))
    known = (todo for words, todo in _HINTS.items() if words in said)
    kind = Transient if any(words in said for words in _PASSING) else MoonflowError
    return kind("; ".join(filter(None, (f"{doing} failed: {said}", next(known, hint)))))


def token() -> str:
    """The access token, "" if there is none; MoonflowError if it cannot be one."""
    value = os.environ.get(TOKEN, "").strip()  # a Secret made from a file ends with its newline
    if not all("!" <= character <= "~" for character in value):
        raise MoonflowError(f"{TOKEN} holds white space or a character that no token has: give the token alone")
    return value


def without_token(text: str) -> str:
    """``text`` with the token struck out: a server may print what it was sent."""
    if secret := os.environ.get(TOKEN, "").strip():
        text = text.replace(secret, "***").replace(_basic(secret), "***")
    return text


def one_line(text: str) -> str:
    """Foreign text for a message or a terminal: one line of printable characters, at most 300."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:300]


def is_remote(url: str) -> bool:
    """Whether a repository's address is a URL or an SSH address rather than a path, as Git tells them apart."""
    return "://" in url or ":" in url.split("/", 1)[0]


def checked(url: str) -> str:
    """A repository's address as Git may have it: http, https, file, or the absolute path of a folder.

    MoonflowError when it is another kind or holds credentials, which it does not show.
    """
    if not is_remote(url):
        return os.path.abspath(url)
    shown = one_line(re.sub(r"(://|^)[^/]*@", r"\1***@", url))
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        parts = None
    if parts is None or any(c.isspace() or not c.isprintable() for c in url):
        raise MoonflowError(f"{REPOSITORY} is {shown}, which is not an address: write https://HOST/OWNER/NAME")
    if "@" in parts.netloc and (parts.password or parts.scheme in ("http", "https")):
        raise MoonflowError(f"{REPOSITORY} holds credentials: leave them out and give the token in {TOKEN}")
    if parts.scheme not in ("http", "https", "file"):
        raise MoonflowError(
            f"{REPOSITORY} is {shown}: the images have no SSH client; write https://HOST/OWNER/NAME and give the "
            f"token in {TOKEN}"
        )
    return url


@contextmanager
def clone(url: str) -> Iterator[Path]:
    """A clone in a temporary folder while the body runs; MoonflowError when the repository cannot be read."""
    url = checked(url)
    with tempfile.TemporaryDirectory(prefix="moonflow-gitops-") as folder:
        path = Path(folder) / "clone"
        git(Path(folder), "clone", "--quiet", "--no-checkout", "--", url, str(path), url=url)
        # Whatever the remote's HEAD says.
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoonflowError(f"{REPOSITORY} is {url}, whose folder cannot be made ({error.strerror})") from None
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        git(path.parent, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", "--", str(made.resolve()))
        with suppress(OSError):  # whole or not at all, and the first of several wins
            made.rename(path)


def has_commits(path: Path) -> bool:
    return resolve(path, "HEAD") != ""


def resolve(path: Path, name: str) -> str:
    """The commit that a name stands for, "" if there is none."""
    found = git(path, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", check=False)
    return found.stdout.decode().strip() if found.returncode == 0 else ""


def commit_all(path: Path, message: str) -> None:
    """Commit everything; characters of the message that do not print, as a NUL, which Git refuses, become "?"."""
    git(path, "add", "--all")
    clean = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in message)
    git(path, "commit", "--quiet", "--file=-", stdin=clean)


def _environment(url: str) -> dict[str, str]:
    """The caller's environment, without the token and without Git's variables, with our settings.

    Settings are passed in the environment: unlike ``-c`` or a URL with credentials, it shows in no process list.
    """
    ours = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") and key != TOKEN}
    ours |= {key: os.environ[key] for key in _KEPT if key in os.environ}
    if (authority := os.environ.get("SSL_CERT_FILE")) and "GIT_SSL_CAINFO" not in ours:
        ours["GIT_SSL_CAINFO"] = authority  # one variable for the forge's requests and for Git's
    settings = dict(_SETTINGS)
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and (secret := token()):
        settings[f"http.{parts.scheme}://{parts.netloc}/.extraHeader"] = f"Authorization: Basic {_basic(secret)}"
    ours |= _ISOLATION | {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        ours |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return ours


def _basic(secret: str) -> str:
    # Forges take the token as the password; GitHub's app tokens insist on this user name, others on none.
    return base64.b64encode(f"x-access-token:{secret}".encode()).decode()
