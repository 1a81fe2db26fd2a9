"""Promotion by pull request: real Git over HTTP, a forge that speaks the two REST dialects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.release import gitops
from components.release.forge import FORGE, Forge
from components.release.git import TOKEN as TOKEN_VARIABLE
from components.release.git import clone, commit_all, git
from components.release.gitops import Proposal
from components.runtime.tracking.progress import StepProgress
from components.serve import merge
from components.serve.merge import promoted_as
from model.boundary.errors import MoonflowError
from tests.components.release.git_server import REPOSITORY, TOKEN, Host, git_host
from tests.components.release.promotions import promote

both = pytest.mark.parametrize("host", ["gitea", "github"], indirect=True)


@pytest.fixture
def host(
    request: pytest.FixtureRequest, git_token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    kind = getattr(request, "param", "gitea")
    monkeypatch.setenv(FORGE, kind)
    monkeypatch.setattr(merge, "POLL_S", 0.05)
    with git_host(tmp_path / "host", kind) as running:
        yield running


def propose(host: Host, digest: str) -> Proposal:
    return promote(host.url + REPOSITORY, digest, "dev", message=f"Promote {digest[:4]}\n", review=True)


def ask(host: Host, proposal: Proposal) -> dict[str, str]:
    """Open or find the pull request; what the promote step would record."""
    forge = Forge.from_env(host.url + REPOSITORY)
    assert forge is not None
    digest = proposal.branch.rpartition("/")[2][0] * 64
    body = f"{gitops.TRAILER}: dev/tiny/{digest}"
    url = forge.ensure(proposal.branch, proposal.commit, f"Promote {digest[:4]}", body).url
    return {
        "manifest_sha256": digest,
        "promotion_id": f"dev/tiny/{digest}",
        "branch": proposal.branch,
        "pull_request": url,
    }


def served(host: Host, record: dict[str, str], tmp_path: Path, timeout: float = 30.0) -> Any:
    progress = StepProgress(tmp_path / "progress", "serve")
    return promoted_as(host.url + REPOSITORY, "dev", record, timeout, progress)


@both
def test_the_same_promotion_is_the_same_commit_and_the_same_pull_request(host: Host, tmp_path: Path):
    first = propose(host, "a" * 64)
    record = ask(host, first)
    assert first.branch == "promote/dev/" + "a" * 12
    assert propose(host, "a" * 64) == first
    assert ask(host, first) == record
    assert host.opened == 1
    assert gitops.find_promoted(host.url + REPOSITORY, "dev") is None  # nothing before the merge
    host.merge(1)
    assert served(host, record, tmp_path).manifest_sha256 == "a" * 64
    assert propose(host, "a" * 64) == Proposal(first.commit)  # merged: no branch, no second request
    assert host.opened == 1


def test_a_squashed_merge_is_known_as_the_promotion(host: Host, tmp_path: Path):
    record = ask(host, propose(host, "a" * 64))
    host.merge(1, squash=True)
    squashed = host.git("rev-parse", "main")
    assert served(host, record, tmp_path).commit == squashed
    assert propose(host, "a" * 64) == Proposal(squashed)
    force = gitops.read_history(host.url + REPOSITORY, "dev").in_force
    assert force is not None and force.commit == squashed


@both
def test_one_promotion_at_many_places_at_once_opens_one_pull_request(host: Host):
    with ThreadPoolExecutor(3) as pool:
        urls = set(pool.map(lambda _: ask(host, propose(host, "a" * 64))["pull_request"], range(3)))
    assert len(urls) == host.opened == 1


def test_a_forge_that_stumbles_is_asked_again(host: Host):
    proposal = propose(host, "a" * 64)
    host.refuse_next = 1
    ask(host, proposal)
    assert host.opened == 1


def test_serving_awaits_the_merge_and_says_so(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = ask(host, propose(host, "a" * 64))
    with pytest.raises(MoonflowError, match=r"pulls/1 is not merged after 0 s: merge it, then start the run again"):
        served(host, record, tmp_path, timeout=0.0)
    later = threading.Timer(0.5, host.merge, [1])
    later.start()
    assert served(host, record, tmp_path).manifest_sha256 == "a" * 64
    later.join()
    assert f"awaiting the merge of {record['pull_request']}" in capsys.readouterr().out


def test_of_two_pull_requests_the_second_stays_mergeable(host: Host, tmp_path: Path):
    first, second = ask(host, propose(host, "a" * 64)), ask(host, propose(host, "b" * 64))
    host.merge(1)
    # The same lines on both sides: unmergeable until the waiting step builds the branch anew.
    with pytest.raises(MoonflowError, match="pulls/2 is not merged"):
        served(host, second, tmp_path, timeout=0.0)
    host.merge(2)
    assert host.opened == 2
    assert served(host, second, tmp_path).manifest_sha256 == "b" * 64
    with pytest.raises(MoonflowError, match="dev now holds s3://moonflow/bbbb .*not what this run promoted"):
        served(host, first, tmp_path)
    past = gitops.read_history(host.url + REPOSITORY, "dev")
    assert [entry.subject for entry in past.entries if entry.kind == "promotion"] == ["Promote bbbb", "Promote aaaa"]


def test_what_reviewers_add_to_a_proposal_stays_when_it_is_built_anew(host: Host, tmp_path: Path):
    """A commit on top, and the main branch merged into it, as a forge's button does."""
    first, proposal = ask(host, propose(host, "a" * 64)), propose(host, "b" * 64)
    second = ask(host, proposal)
    with clone(host.url + REPOSITORY) as folder:
        git(folder, "checkout", "--quiet", "-B", "theirs", f"origin/{proposal.branch}")
        (folder / "NOTES").write_text("reviewed\n")
        commit_all(folder, "Notes\n")
        git(folder, "push", "--quiet", "origin", f"HEAD:{proposal.branch}", url=host.url)
        host.merge(1)
        git(folder, "fetch", "--quiet", "origin", url=host.url)
        git(folder, "merge", "--quiet", "--strategy-option=ours", "-m", "Update the branch", "origin/main")
        git(folder, "push", "--quiet", "origin", f"HEAD:{proposal.branch}", url=host.url)
    third = ask(host, propose(host, "c" * 64))
    host.merge(3)
    with pytest.raises(MoonflowError, match="pulls/2 is not merged"):
        served(host, second, tmp_path, timeout=0.0)
    host.merge(2)
    assert served(host, second, tmp_path).manifest_sha256 == "b" * 64
    assert host.git("show", "main:NOTES") == "reviewed"
    past = gitops.read_history(host.url + REPOSITORY, "dev")
    assert [entry.after.manifest_sha256[0] for entry in past.standing] == ["n", "a", "c", "b"]
    assert {first["pull_request"], third["pull_request"]} == {f"{host.url}/platform/gitops/pulls/{n}" for n in (1, 3)}


@both
def test_a_closed_pull_request_is_a_no(host: Host, tmp_path: Path):
    proposal = propose(host, "a" * 64)
    record = ask(host, proposal)
    host.pulls[0] |= {"state": "closed"}
    with pytest.raises(MoonflowError, match="pulls/1 was closed without a merge"):
        served(host, record, tmp_path)
    with pytest.raises(MoonflowError, match="pulls/1 was closed without a merge: reopen it"):
        ask(host, proposal)
    assert host.opened == 1


def test_a_rollback_by_pull_request_is_asked_for_once(host: Host, tmp_path: Path):
    record = ask(host, propose(host, "a" * 64))
    host.merge(1)
    served(host, record, tmp_path)
    url = host.url + REPOSITORY
    force = gitops.read_history(url, "dev").in_force
    assert force is not None
    first = gitops.revert(url, "dev", force, review=True)
    assert first.branch == f"rollback/dev/{force.commit[:12]}"
    assert gitops.revert(url, "dev", force, review=True) == first
    assert gitops.find_promoted(url, "dev") is not None


def test_a_wrong_token_and_a_wrong_forge_are_told(host: Host, monkeypatch: pytest.MonkeyPatch):
    proposal = propose(host, "a" * 64)
    monkeypatch.setenv(TOKEN_VARIABLE, "a-wrong-token")
    with pytest.raises(MoonflowError, match=r"refused \(401 .*check MOONFLOW_GIT_TOKEN") as caught:
        ask(host, proposal)
    assert "a-wrong-token" not in str(caught.value)
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(MoonflowError, match="MOONFLOW_GIT_TOKEN is not set"):
        ask(host, proposal)
    monkeypatch.setenv(FORGE, "gitlab")
    with pytest.raises(MoonflowError, match="MOONFLOW_FORGE is 'gitlab': write github or gitea"):
        ask(host, proposal)


def answering(monkeypatch: pytest.MonkeyPatch, status: int, content: bytes) -> Forge:
    """A forge that says one thing to everything."""
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(status, content=content))
    return Forge("gitea", "https://example.org/o/n.git")


PULL = b'{"number": 1, "html_url": "u", "state": "%s", "head": {"ref": "b", "sha": "c"}, "base": {"ref": "main"}}'


@pytest.mark.parametrize("content", [
    b"", b"<html>sign in</html>", b"\xff", b"null", b"1", b"{}", b'{"message": "hello"}', b"[1]", b"[null]", b"[{}]",
    b'[{"head": null}]', b"[[[[]]]]", b"[%s]" % (PULL % b"odd"), b"[%s]" % PULL.replace(b"1", b'"one"', 1),
    b"[" * 100_000,
])  # fmt: skip
def test_an_answer_that_is_no_list_of_pull_requests_is_told(content: bytes, monkeypatch: pytest.MonkeyPatch):
    forge = answering(monkeypatch, 200, content)
    with pytest.raises(MoonflowError, match="answered something else than pull requests: check MOONFLOW_FORGE"):
        forge.find("b", "c")


def test_a_forge_that_repeats_its_pages_is_left(monkeypatch: pytest.MonkeyPatch):
    forge = answering(monkeypatch, 200, b"[%s]" % b",".join([PULL.replace(b'"b"', b'"other"') % b"open"] * 50))
    with pytest.raises(MoonflowError, match="none of the first 10000 pull requests of .* is that of b"):
        forge.find("b", "c")


def test_a_forge_that_repeats_the_token_does_not_show_it(monkeypatch: pytest.MonkeyPatch):
    forge = answering(monkeypatch, 403, f"no \x1b[31m\n{TOKEN}".encode())
    with pytest.raises(MoonflowError, match=r"403 no \?\[31m \*\*\*") as caught:
        forge.find("b", "c")
    assert TOKEN not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(("kind", "address", "pulls"), [
    ("github", "https://github.com/o/n.git", "https://api.github.com/repos/o/n/pulls"),
    ("github", "https://git.example.org/o/n", "https://git.example.org/api/v3/repos/o/n/pulls"),
    ("gitea", "https://example.org:3000/code/o/n.git", "https://example.org:3000/code/api/v1/repos/o/n/pulls"),
    ("gitea", "http://gitea.forge:3000/o/n.git", "http://gitea.forge:3000/api/v1/repos/o/n/pulls"),
])  # fmt: skip
def test_the_api_follows_from_the_repository(kind: Any, address: str, pulls: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    asked = []
    monkeypatch.setattr(httpx, "request", lambda _, url, **__: asked.append(url) or httpx.Response(200, content=b"[]"))
    assert Forge(kind, address).find("a-branch", "a-commit") is None
    assert asked == [pulls]


def test_an_address_without_owner_is_refused_and_a_folder_has_no_forge(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setenv(FORGE, "gitea")
    assert Forge.from_env("/srv/gitops.git") is None
    for address in ("https://example.org/gitops.git", "git@example.org:o/n.git", "ssh://git@example.org/o/n.git"):
        with pytest.raises(MoonflowError, match=r"https://HOST/OWNER/NAME.* token in MOONFLOW_GIT_TOKEN"):
            Forge.from_env(address)
