"""Git as it is run for a promotion: by no configuration but ours, and with a token that stays where it belongs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.release import gitops
from components.release.forge import Forge
from components.release.git import TOKEN as TOKEN_VARIABLE
from components.release.git import checked, clone, output
from components.release.overlay import Change
from model.boundary.errors import MoonflowError
from tests.components.release.git_server import REPOSITORY, TOKEN, git_host
from tests.components.release.promotions import promote
from tests.http_server import Handler, serving
from tests.shell_programs import write_program

DIGESTS = ("a" * 64, "b" * 64)


def promote_and_revert(repository: Path | str) -> None:
    """Everything that Git is asked to do to a repository."""
    for digest in DIGESTS:
        promote(repository, digest)
    force = gitops.read_history(str(repository), "local").in_force
    assert force is not None and force.after.manifest_sha256 == DIGESTS[1]
    gitops.revert(str(repository), "local", force)
    past = gitops.read_history(str(repository), "local")
    assert past.served.manifest_sha256 == DIGESTS[0] and past.rollback == past.last


class Thief(Handler):
    """Notes what it is sent."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.command} {self.path} {self.headers}")
        self.send_error(404)

    do_POST = do_GET


class Redirects(Handler):
    target: str

    def do_GET(self) -> None:
        self.reply(302, headers={"Location": f"{self.target}{self.path}"})

    do_POST = do_GET


@dataclass
class Elsewhere:
    """A server that redirects every request to another one, and what that one was sent."""

    url: str
    seen: list[str]


@pytest.fixture
def elsewhere(git_token: None) -> Iterator[Elsewhere]:
    seen: list[str] = []
    with serving(Thief, seen=seen) as target, serving(Redirects, target=target) as url:
        yield Elsewhere(url, seen)


def test_the_token_does_not_follow_git_to_another_server(elsewhere: Elsewhere):
    with pytest.raises(MoonflowError, match="redirects, which is not followed: write the address") as caught:
        gitops.find_promoted(elsewhere.url + REPOSITORY, "local")
    assert elsewhere.seen == []
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


def test_a_push_is_not_redirected_either(elsewhere: Elsewhere, tmp_path: Path):
    """The server turns between the clone and the push."""
    with git_host(tmp_path / "host") as host, clone(host.url + REPOSITORY) as folder:
        output(folder, "remote", "set-url", "origin", elsewhere.url + REPOSITORY)
        with pytest.raises(MoonflowError, match="redirects, which is not followed"):
            output(folder, "push", "origin", "HEAD:main", url=elsewhere.url + REPOSITORY)
    assert elsewhere.seen == []


@pytest.mark.parametrize("kind", ["gitea", "github"])
def test_the_token_does_not_follow_a_forge_to_another_server(elsewhere: Elsewhere, kind: str):
    forge = Forge(kind, elsewhere.url + REPOSITORY)  # type: ignore[arg-type]
    for ask in (lambda: forge.find("b", "c"), lambda: forge.ensure("b", "c", "title", "body")):
        with pytest.raises(MoonflowError, match=r"refused \(302 .*redirects, which is not followed") as caught:
            ask()
        assert TOKEN not in str(caught.value)
    assert elsewhere.seen == []


CONFIG = """\
[revert]
  reference = true
[clone]
  defaultRemoteName = upstream
[push]
  gpgSign = true
  default = nothing
[commit]
  gpgSign = true
  cleanup = scissors
  template = /nowhere
[tag]
  gpgSign = true
[core]
  hooksPath = {hooks}
  excludesFile = {ignore}
  attributesFile = {attributes}
  autocrlf = true
  quotePath = true
  editor = false
  worktree = /nowhere
[log]
  showSignature = true
  follow = true
  date = relative
[i18n]
  logOutputEncoding = UTF-16
  commitEncoding = latin1
[protocol]
  allow = never
[fetch]
  prune = true
[merge]
  ff = false
[color]
  ui = always
[diff]
  external = false
  noprefix = true
[user]
  useConfigOnly = true
[init]
  defaultBranch = trunk
[submodule]
  recurse = true
[url "http://127.0.0.1:1/"]
  insteadOf = /
"""


def test_no_configuration_of_the_user_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    for name in ("pre-commit", "commit-msg", "prepare-commit-msg", "pre-push", "post-checkout", "post-commit"):
        write_program(home / "hooks" / name, f"touch {tmp_path}/ran\nexit 1\n")
    (home / "ignore").write_text("*.yaml\n")
    (home / "attributes").write_text("* text eol=crlf working-tree-encoding=UTF-16\n")
    config = CONFIG.format(hooks=home / "hooks", ignore=home / "ignore", attributes=home / "attributes")
    for path in (".gitconfig", ".config/git/config"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(config)
    for name in ("ignore", "attributes"):
        shutil.copy(home / name, home / ".config" / "git" / name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    repository = tmp_path / "gitops.git"
    promote_and_revert(repository)
    assert not (tmp_path / "ran").exists()
    shown = subprocess.run(
        ["git", "log", "--format=%an %ae %s", "main"], cwd=repository, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull},
    ).stdout.splitlines()  # fmt: skip
    assert shown[0] == 'moonflow moonflow@localhost Revert "Promote"' and len(shown) == 4


@pytest.mark.parametrize("given", [
    {"GIT_CONFIG_COUNT": "abc"},
    {"GIT_CONFIG_COUNT": "-1"},
    {"GIT_CONFIG_COUNT": "1"},
    {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "clone.defaultRemoteName", "GIT_CONFIG_VALUE_0": "upstream"},
    {"GIT_CONFIG_PARAMETERS": "'commit.gpgsign'='true'"},
    {"GIT_CONFIG_GLOBAL": "/dev/stdin", "GIT_CONFIG_SYSTEM": "/nowhere"},
    {"GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/nowhere", "GIT_INDEX_FILE": "/nowhere/index"},
    {"GIT_OBJECT_DIRECTORY": "/nowhere", "GIT_NAMESPACE": "n", "GIT_COMMON_DIR": "/nowhere"},
    {"GIT_AUTHOR_DATE": "never", "GIT_COMMITTER_NAME": "", "GIT_EDITOR": "false"},
    {"GIT_TRACE": "1", "GIT_TRACE_CURL": "/nowhere/trace", "GIT_TRACE_REDACT": "0"},
    {"GIT_ALLOW_PROTOCOL": "ssh", "GIT_TEMPLATE_DIR": "/nowhere", "GIT_LITERAL_PATHSPECS": "x"},
    {"GIT_DEFAULT_HASH": "sha256", "GIT_EXTERNAL_DIFF": "false", "GIT_PAGER": "false"},
])  # fmt: skip
def test_no_variable_of_the_user_matters(given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    repository = tmp_path / "gitops.git"
    assert promote(repository, DIGESTS[0]).commit == gitops.read_history(str(repository), "local").last.commit


def test_certificates_of_one_variable_count_for_git_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_program(tmp_path / "git", f'echo "$GIT_SSL_CAINFO $GIT_SSL_NO_VERIFY" > {tmp_path}/seen\n')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
    monkeypatch.setenv("GIT_SSL_NO_VERIFY", "1")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/company.pem")
    output(tmp_path, "version")
    assert (tmp_path / "seen").read_text() == "/etc/company.pem \n"
    monkeypatch.setenv("GIT_SSL_CAINFO", "/etc/git.pem")
    output(tmp_path, "version")
    assert (tmp_path / "seen").read_text() == "/etc/git.pem \n"


def test_without_a_token_nobody_is_asked_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ask = write_program(tmp_path / "ask", f"touch {tmp_path}/asked\necho secret\n")
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.setenv(name, str(ask))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with git_host(tmp_path / "host") as host:
        with pytest.raises(MoonflowError, match="give a token in MOONFLOW_GIT_TOKEN; credential helpers are not asked"):
            gitops.find_promoted(host.url + REPOSITORY, "local")
        assert not (tmp_path / "asked").exists()
        monkeypatch.setenv(TOKEN_VARIABLE, f"{TOKEN}\n")  # a Secret made from a file
        assert gitops.find_promoted(host.url + REPOSITORY, "local") is None


def test_a_login_that_curl_keeps_does_not_take_the_tokens_place(
    git_token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password wrong\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with git_host(tmp_path / "host") as host:
        assert gitops.find_promoted(host.url + REPOSITORY, "local") is None


@pytest.mark.parametrize("token", ["two words", "a\nb", "tökén", "a\x1b[31m"])
def test_what_cannot_be_a_token_is_told_without_it(token: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    for use in (lambda: gitops.find_promoted("http://127.0.0.1:1/o/n.git", "local"),
                lambda: Forge("gitea", "http://127.0.0.1:1/o/n.git")):  # fmt: skip
        with pytest.raises(MoonflowError, match="MOONFLOW_GIT_TOKEN holds .*give the token alone") as caught:
            use()
        assert token not in str(caught.value)


@pytest.mark.parametrize("address", [
    f"https://{TOKEN}@example.org/o/n.git",
    f"https://me:{TOKEN}@example.org/n.git",
    f"ssh://me:{TOKEN}@example.org/o/n.git",
    f"{TOKEN}@example.org:o/n.git",
    f"ftp://{TOKEN}@example.org/o/n.git",
    f"https://{TOKEN}@example.org:port/o/n.git",
    f"https://{TOKEN}@[::1/o/n.git",
    f"https://{TOKEN}@example.org/o/n.git\nx",
])  # fmt: skip
def test_credentials_in_an_address_are_refused_and_not_shown(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "another")
    for use in (checked, lambda address: Forge("gitea", address), lambda address: promote(address, DIGESTS[0])):
        with pytest.raises(MoonflowError, match="MOONFLOW_GITOPS_REPO") as caught:
            use(address)
        assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["ext::sh -c true", "git://127.0.0.1/o/n.git", "--upload-pack=true", "-c x=y"])
def test_other_ways_to_a_repository_are_closed(address: str):
    with pytest.raises(MoonflowError):
        gitops.find_promoted(address, "local")


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = promote("gitops.git", DIGESTS[0])
    assert gitops.read_history("gitops.git", "local").last.commit == made.commit
    assert (tmp_path / "gitops.git" / "HEAD").is_file()


def test_a_machine_without_git_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MoonflowError, match="git is not installed"):
        promote(tmp_path / "gitops.git", DIGESTS[0])


def test_what_a_server_says_reaches_no_terminal_raw(tmp_path: Path):
    repository = tmp_path / "gitops.git"
    promote(repository, DIGESTS[0])
    write_program(repository / "hooks" / "pre-receive", "printf 'no \\033[31m red \\377\\n' >&2\nexit 1\n")
    with pytest.raises(MoonflowError, match=r"no \?\[31m red") as caught:
        promote(repository, DIGESTS[1])
    assert str(caught.value).isprintable()


def test_a_message_may_hold_anything(tmp_path: Path):
    made = promote(tmp_path / "gitops.git", DIGESTS[0], message="Promote \x00\x1e\x1b[31m\ud800\n\n# not a comment\n")
    past = gitops.read_history(str(tmp_path / "gitops.git"), "local")
    assert past.last.subject == "Promote ???[31m?"
    assert past.made(f"local/tiny/{DIGESTS[0]}", DIGESTS[0]) == made.commit
    with pytest.raises(MoonflowError, match="cannot name a promotion: take white space out of the run's id"):
        gitops.promote(str(tmp_path / "gitops.git"), "local", Change("s3://b/c", DIGESTS[1]), "Promote", "a b\nc")
