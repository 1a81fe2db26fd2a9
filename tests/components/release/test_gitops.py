"""Promotion into a real bare repository, by real Git; over HTTP where the token matters."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.release import gitops
from components.release.git import TOKEN as TOKEN_VARIABLE
from components.release.git import git as run_git
from components.release.gitops import MANIFESTS, Proposal, read_promoted
from components.release.overlay import Change
from model.boundary.errors import MoonflowError
from tests.components.release import promotions
from tests.components.release.git_server import REPOSITORY, TOKEN, Host, git_host
from tests.shell_programs import write_program

URI, DIGEST = "s3://moonflow/aaaa", "a" * 64


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=repository, check=True, capture_output=True, text=True).stdout


def commits(repository: Path) -> list[str]:
    return git(repository, "log", "--format=%H", "main").split()


def promote(repository: Path | str, digest: str = DIGEST, environment: str = "local", run: str = "tiny") -> Proposal:
    return promotions.promote(repository, digest, environment, run, message=f"Promote {run}\n\ndigit_string 0.95\n")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "gitops.git"


@pytest.fixture
def host(git_token: None, tmp_path: Path) -> Iterator[Host]:
    with git_host(tmp_path / "host") as running:
        yield running


def test_first_promotion_begins_the_repository_and_changes_four_lines(repository: Path):
    made = promote(repository)
    promoted = read_promoted(str(repository), "local")
    assert (promoted.uri, promoted.manifest_sha256, promoted.commit) == (URI, DIGEST, made.commit)
    assert commits(repository)[0] == made.commit
    assert len(commits(repository)) == 2  # our manifests, then the promotion
    added, _, path = git(repository, "show", "--numstat", "--format=", "main").split()
    assert (added, path) == ("4", "overlays/local/kustomization.yaml")
    shown = git(repository, "show", "main")
    for line in (
        "KFP_RUN_ID=kfp-1",
        "MLFLOW_RUN_ID=mlflow-1",
        "digit_string 0.95",
        f"Promotion-Id: local/tiny/{DIGEST}",
    ):
        assert line in shown


def test_a_remote_repository_is_never_begun_with_our_addresses(git_token: None, tmp_path: Path):
    with git_host(tmp_path / "host", begun=False) as host:
        with pytest.raises(MoonflowError, match=r"has no branch main: push your edited manifests/ there first"):
            promote(host.url + REPOSITORY)
        assert host.git("for-each-ref") == ""
        host.begin()
        begun = host.git("rev-parse", "main")
        made = promote(host.url + REPOSITORY)
        assert host.git("rev-parse", f"{made.commit}^") == begun
        assert host.git("diff", "--name-only", begun, "main") == "overlays/local/kustomization.yaml"


@pytest.mark.parametrize("address", ["git@127.0.0.1:o/n.git", "ssh://git@127.0.0.1/o/n.git", "127.0.0.1:o/n.git"])
def test_an_ssh_address_is_refused_before_git_looks_for_ssh(address: str, tmp_path: Path):
    with pytest.raises(MoonflowError, match=r"no SSH client; write https://HOST/OWNER/NAME .*MOONFLOW_GIT_TOKEN"):
        promote(address)
    assert promote(tmp_path / "me@home" / "gitops.git").commit  # a path, whatever is in it


def test_only_what_talks_to_the_remote_blames_its_address(tmp_path: Path):
    git(tmp_path, "init", "--quiet", ".")
    with pytest.raises(MoonflowError, match="git cherry-pick failed") as caught:
        run_git(tmp_path, "cherry-pick", "absent")
    assert "MOONFLOW_GITOPS_REPO" not in str(caught.value)
    with pytest.raises(MoonflowError, match="git clone failed: .*; check MOONFLOW_GITOPS_REPO, or --repository"):
        read_promoted(str(tmp_path / "absent.git"), "local")


def test_a_serving_image_is_pinned_by_digest(repository: Path):
    image = "sha256:" + "1" * 64
    gitops.promote(str(repository), "prod", Change(URI, DIGEST, image_digest=image), "Promote", "prod/tiny/1")
    text = git(repository, "show", "main:overlays/prod/kustomization.yaml")
    assert f"digest: {image}" in text
    promote(repository, "b" * 64, "prod")  # without one the pin stays
    assert f"digest: {image}" in git(repository, "show", "main:overlays/prod/kustomization.yaml")


def test_the_same_checkpoint_is_the_same_commit(repository: Path):
    first = promote(repository)
    assert promote(repository) == first
    assert promote(repository, run="another") == first
    assert len(commits(repository)) == 2


def test_a_promotion_that_was_followed_by_another_is_not_made_again(repository: Path):
    first = promote(repository)
    second = promote(repository, "b" * 64)
    assert promote(repository) == first  # a retry after the other one must not take its place
    assert read_promoted(str(repository), "local").commit == second.commit


def test_environments_are_apart(repository: Path):
    promote(repository)
    with pytest.raises(MoonflowError, match="nothing is promoted to prod"):
        read_promoted(str(repository), "prod")
    with pytest.raises(MoonflowError, match="no overlay 'staging'; it has: dev, local, prod"):
        promote(repository, environment="staging")


def _promote_in_process(url: str, digest: str, answers: multiprocessing.Queue[str]) -> None:
    answers.put(promote(url, digest, run=digest[:4]).commit)


def test_concurrent_processes_over_http_lose_no_promotion(host: Host):
    url = host.url + REPOSITORY
    promote(url)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    digests = [letter * 64 for letter in "bcd"]
    running = [context.Process(target=_promote_in_process, args=(url, digest, answers)) for digest in digests]
    for process in running:
        process.start()
    made = [answers.get(timeout=60) for _ in digests]
    for process in running:
        process.join(60)
    history = host.git("log", "--format=%H", "main").split()
    assert len(set(made)) == 3 and set(made) <= set(history)
    assert len(history) == 5
    # Each is built on the one before it: the overlay of every commit holds that commit's own digest.
    seen = {host.git("show", f"{commit}:overlays/local/kustomization.yaml").split("SHA256=")[1][:64] for commit in made}
    assert seen == set(digests)


def test_the_same_promotion_many_times_at_once_is_one_commit(repository: Path):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: promote(repository), range(4)))
    assert len(set(made)) == 1
    assert len(commits(repository)) == 2


def test_a_push_that_a_hook_refuses_is_an_error_with_its_words(repository: Path):
    promote(repository)
    write_program(repository / "hooks" / "pre-receive", "echo no promotions on Fridays >&2\nexit 1\n")
    with pytest.raises(MoonflowError, match="no promotions on Fridays"):
        promote(repository, "b" * 64)
    assert read_promoted(str(repository), "local").manifest_sha256 == DIGEST


def somebody_else_is_faster(repository: Path, times: int) -> None:
    """The next ``times`` pushes find a commit on the main branch that was not there when they were built."""
    write_program(
        repository / "hooks" / "pre-receive",
        "unset GIT_QUARANTINE_PATH GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES\n"
        f"echo . >> lost; test $(wc -l < lost) -gt {times} && exit 0\n"
        "new=$(git -c user.name=a -c user.email=a@b commit-tree main^{tree} -p main -m other)\n"
        "git update-ref refs/heads/main $new\nexit 1\n",
    )


def test_a_rejected_push_is_built_anew_on_what_was_pushed(repository: Path):
    promote(repository)
    somebody_else_is_faster(repository, 3)
    made = promote(repository, "b" * 64)
    assert commits(repository)[0] == made.commit
    subjects = git(repository, "log", "--format=%s", "main").split("\n")[:4]
    assert subjects == ["Promote tiny", "other", "other", "other"]


def test_a_push_that_keeps_losing_ends_in_one_line(repository: Path, monkeypatch: pytest.MonkeyPatch):
    promote(repository)
    somebody_else_is_faster(repository, 100)
    monkeypatch.setattr(gitops, "PUSH_SECONDS", 0.0)
    with pytest.raises(MoonflowError, match="lost against other pushes for 0 s; run again"):
        promote(repository, "b" * 64)
    assert read_promoted(str(repository), "local").manifest_sha256 == DIGEST


def test_a_repository_whose_head_names_another_branch_is_written_to_main(repository: Path):
    git(repository.parent, "init", "--bare", "--quiet", "--initial-branch=trunk", str(repository))
    with pytest.raises(MoonflowError, match="is empty; run the promote step first"):
        read_promoted(str(repository), "local")
    promote(repository)
    promote(repository, "b" * 64)
    assert len(commits(repository)) == 3


def test_an_unreachable_repository_is_named_in_one_line(tmp_path: Path):
    with pytest.raises(MoonflowError, match="git clone failed") as caught:
        read_promoted(str(tmp_path / "absent.git"), "local")
    assert "\n" not in str(caught.value)


def test_the_token_is_in_no_error_no_file_and_no_command_line(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = shutil.which("git")
    (tmp_path / "bin").mkdir()
    noting = f'echo "$@" >> {tmp_path}/arguments\ncat .git/config >> {tmp_path}/configs 2>&1\nexec {real} "$@"\n'
    write_program(tmp_path / "bin" / "git", noting)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    promote(host.url + REPOSITORY)
    seen = (tmp_path / "arguments").read_text() + (tmp_path / "configs").read_text()
    assert "push" in seen and host.url in seen
    assert TOKEN not in seen and "Authorization" not in seen
    monkeypatch.setenv(TOKEN_VARIABLE, "a-wrong-token")
    with pytest.raises(MoonflowError, match="git clone failed") as caught:
        read_promoted(host.url + REPOSITORY, "local")
    assert "a-wrong-token" not in str(caught.value)
    with pytest.raises(MoonflowError, match="holds credentials: leave them out") as caught:
        read_promoted(host.url.replace("//", f"//x:{TOKEN}@") + REPOSITORY, "local")
    assert TOKEN not in str(caught.value)


def test_a_token_that_the_server_prints_is_struck_out(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    promote(repository)
    write_program(repository / "hooks" / "pre-receive", f"echo denied for {TOKEN} >&2\nexit 1\n")
    with pytest.raises(MoonflowError, match=r"denied for \*\*\*"):
        promote(repository, "b" * 64)


def test_a_rollback_is_a_revert_of_the_promotion_in_force(repository: Path):
    promote(repository)
    second, third = promote(repository, "b" * 64), promote(repository, "c" * 64)
    url = str(repository)
    force = gitops.read_history(url, "local").in_force
    assert force is not None and force.commit == third.commit
    made = gitops.revert(url, "local", force)
    assert f"This reverts commit {third.commit}" in git(repository, "show", made.commit)
    assert read_promoted(url, "local").manifest_sha256 == "b" * 64
    # The next one goes one further, not back and forth.
    force = gitops.read_history(url, "local").in_force
    assert force is not None and force.commit == second.commit
    gitops.revert(url, "local", force)
    assert read_promoted(url, "local").manifest_sha256 == DIGEST
    # What was rolled back does not come again by a retry of its own promotion.
    assert promote(repository, "c" * 64) == third
    assert read_promoted(url, "local").manifest_sha256 == DIGEST


def test_a_promotion_during_a_rollback_is_not_rolled_back(repository: Path):
    promote(repository)
    force = gitops.read_history(str(repository), "local").in_force
    assert force is not None
    later = promote(repository, "b" * 64)
    with pytest.raises(MoonflowError, match="changed while it was rolled back"):
        gitops.revert(str(repository), "local", force)
    assert read_promoted(str(repository), "local").commit == later.commit


def test_the_first_promotion_can_be_rolled_back_to_nothing(repository: Path):
    promote(repository)
    force = gitops.read_history(str(repository), "local").in_force
    assert force is not None
    gitops.revert(str(repository), "local", force)
    assert gitops.find_promoted(str(repository), "local") is None
    assert gitops.read_history(str(repository), "local").in_force is None


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("environment", ["local", "dev", "prod"])
def test_the_promoted_overlay_builds_and_carries_the_digest(repository: Path, tmp_path: Path, environment: str):
    promote(repository, environment=environment)
    git(tmp_path, "clone", "--quiet", str(repository), "clone")
    built = subprocess.run(
        ["kubectl", "kustomize", f"clone/overlays/{environment}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"CHECKPOINT_SHA256: {DIGEST}" in built.replace('"', "")
    assert f"CHECKPOINT_URI: {URI}" in built
    assert "kind: Service" in built
    assert "kind: Deployment" in built or "kind: LeaderWorkerSet" in built


def test_no_secret_is_kept_in_the_manifests():
    for path in MANIFESTS.rglob("*.yaml"):
        assert "kind: Secret\n" not in path.read_text(), path
        assert "SECRET_ACCESS_KEY=" not in path.read_text(), path
