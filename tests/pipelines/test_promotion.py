"""``moonflow promote``: real Git, a real registry, and once the services of a run's folder."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.release import champion, gitops, registry, signing
from components.release.git import clone, git, resolve
from components.release.overlay import Change
from components.runtime.checkpoints import manifest as manifests
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.profile import load_profile
from pipelines.promotion import Target, roll_back, show, target_of
from pipelines.services import Services, stop_kept
from pipelines.services.local import service_processes
from tests.components.release.promotions import champion_version
from tests.pipelines.commands import moonflow
from tests.pipelines.older_run import write_older_run
from tests.published import publish_output, write_text_checkpoint


@dataclass(frozen=True)
class Made:
    """A promotion of a checkpoint that stands in a store."""

    commit: str
    digest: str
    uri: str


def promote_all(repository: str, letters: str = "ab", store: ObjectStore | None = None, key: Path | None = None
                ) -> list[Made]:  # fmt: skip
    """A promotion a letter to the environment local, the last one champion."""
    store = store or open_store()
    made = []
    for letter in letters:
        with tempfile.TemporaryDirectory() as folder:
            weights = write_text_checkpoint(Path(folder, "made"), letter * 9)
            if key is not None:
                signing.sign(weights, key)
            stored = publish_output(store, weights, letter, "export")
        tags = {"manifest_sha256": stored.sha256}
        number = registry.register("moonflow", "candidate", stored.uri, tags)
        change, name = Change(stored.uri, stored.sha256), f"local/run/{stored.sha256}"
        commit = gitops.promote(repository, "local", change, f"Promote {number}", name).commit
        made.append(Made(commit, stored.sha256, stored.uri))
    champion.follow(repository, "local", "moonflow", "champion")
    return made


def served(target: Target) -> str:
    return gitops.read_promoted(target.repository, "local").manifest_sha256


@pytest.fixture
def target(own_mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.delenv(signing.PUBLIC_KEY, raising=False)
    return target_of(None, str(tmp_path / "gitops.git"), "local", "")


def test_once_back_and_no_further_unasked(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    (first, a), (second, _) = ((made.commit, made.digest) for made in promote_all(target.repository))
    roll_back(target, dry_run=True)
    assert f"would revert {second[:12]} (Promote 2)" in capsys.readouterr().out
    assert champion_version() == "2" and gitops.read_promoted(target.repository, "local").commit == second
    roll_back(target, dry_run=False)
    said = capsys.readouterr().out
    assert f"reverted {second[:12]}" in said and "local serves version 1 of moonflow again; it is champion" in said
    assert champion_version() == "1" and served(target) == a
    show(target)
    shown = capsys.readouterr().out.splitlines()
    assert f"* {first[:12]} Promote 1" in shown  # the star marks what is in force
    assert shown[2].endswith('Revert "Promote 2"') and f"  {second[:12]} Promote 2" in shown
    for dry_run in (True, False):
        roll_back(target, dry_run=dry_run)
        said = capsys.readouterr().out
        assert f"local is already rolled back by {head(target)[:12]}, to {first[:12]} (Promote 1)" in said
        assert champion_version() == "1" and gitops.read_promoted(target.repository, "local").commit != second
    # Further back by hand, as the last line said; the alias follows.
    assert f"git revert {first[:12]}" in said
    by_hand(target, "revert", "--no-edit", first)
    roll_back(target, dry_run=False)
    assert "finished the rollback" in capsys.readouterr().out
    assert champion_version() == ""
    roll_back(target, dry_run=False)
    assert "to nothing" in capsys.readouterr().out


def by_hand(target: Target, *arguments: str) -> None:
    """What somebody pushes who works with Git alone."""
    with clone(target.repository) as folder:
        git(folder, *arguments)
        git(folder, "push", "--quiet", "origin", "HEAD:main")


def head(target: Target) -> str:
    with clone(target.repository) as folder:
        return resolve(folder, "HEAD")


def test_a_promotion_that_never_answered_is_taken_back_alone(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = promote_all(target.repository)
    registry.point("moonflow", "champion", "1")  # its serve check failed: the alias never moved
    roll_back(target, dry_run=False)
    overlay = "overlays/local/kustomization.yaml"
    with clone(target.repository) as folder:  # somebody tunes the overlay meanwhile
        (folder / overlay).write_text((folder / overlay).read_text() + "# larger\n")
        git(folder, "commit", "--quiet", "--all", "--message", "Tune")
        git(folder, "push", "--quiet", "origin", "HEAD:main")
    for _ in range(2):
        capsys.readouterr()
        roll_back(target, dry_run=False)
        assert "already rolled back" in capsys.readouterr().out
    assert served(target) == a.digest and champion_version() == "1"
    # What was taken back is promoted anew, and that can be rolled back.
    gitops.promote(target.repository, "local", Change(b.uri, b.digest), "Promote 2 again", "local/other/b")
    champion.follow(target.repository, "local", "moonflow", "champion")
    roll_back(target, dry_run=False)
    assert champion_version() == "1"


def test_a_rollback_that_was_itself_reverted_is_none(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = promote_all(target.repository)
    roll_back(target, dry_run=False)
    by_hand(target, "revert", "--no-edit", head(target))
    assert served(target) == b.digest
    champion.follow(target.repository, "local", "moonflow", "champion")
    roll_back(target, dry_run=False)
    assert served(target) == a.digest and champion_version() == "1"


def test_without_a_promotion_there_is_nothing_to_roll_back(target: Target) -> None:
    promote_all(target.repository)
    with pytest.raises(MoonflowError, match="dev has no promotion to roll back"):
        roll_back(target_of(None, target.repository, "dev", ""), dry_run=False)


def test_a_rollback_that_died_after_the_push_is_finished_and_goes_no_further(
    target: Target, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = promote_all(target.repository)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(champion, "follow", dies)
        with pytest.raises(KeyboardInterrupt):
            roll_back(target, dry_run=False)
    assert champion_version() == "2"  # Git is back, the alias is not
    roll_back(target, dry_run=False)
    assert "finished the rollback" in capsys.readouterr().out
    assert champion_version() == "1"
    assert served(target) == a.digest


def damage(made: Made, kind: str) -> None:
    """Do to a stored checkpoint what retention, a colleague or a disk does."""
    store = open_store()
    if kind == "manifest gone":
        store.delete(f"{made.uri}/manifest.json")
    elif kind == "another manifest":
        kept = store.get(f"{made.uri}/manifest.json").replace(b'"tokens_seen": 0', b'"tokens_seen": 1')
        store.put(f"{made.uri}/manifest.json", kept)
    elif kind == "manifest damaged":
        store.put(f"{made.uri}/manifest.json", b"{")
    elif kind == "file gone":
        (weights,) = (file for file in manifests.read(store, made.uri).files if file.name == "model.safetensors")
        store.delete(f"{made.uri}/{weights.path}")
    elif kind == "file cut":
        (weights,) = (file for file in manifests.read(store, made.uri).files if file.name == "model.safetensors")
        store.put(f"{made.uri}/{weights.path}", b"")


@pytest.mark.parametrize(("kind", "says"), [
    ("manifest gone", r"has no manifest\.json"),
    ("another manifest", r"its manifest has sha256 [0-9a-f]{64} now"),
    ("manifest damaged", r"manifest\.json is damaged"),
    ("file gone", r"files missing: 1 of \d+, first model\.safetensors"),
    ("file cut", r"files of another size: 1 of \d+, first model\.safetensors"),
])  # fmt: skip
def test_what_can_no_longer_be_fetched_is_not_rolled_back_to(
    target: Target, kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c, d = promote_all(target.repository, "abcd")
    for made in (b, c):
        damage(made, kind)
    for dry_run in (True, False):
        with pytest.raises(MoonflowError, match=says) as caught:
            roll_back(target, dry_run=dry_run)
        said = str(caught.value)
        assert "\n" not in said and f"it would go to {c.commit[:12]} (Promote 3), which cannot be served" in said
        assert served(target) == d.digest and champion_version() == "4"
    # The way that it names leads there.
    undone = " && ".join(f"git revert {made.commit[:12]}" for made in (d, c, b))
    assert f"the next older one that can is {a.commit[:12]} (Promote 1): {undone} in a clone of " in said
    subprocess.run(["git", "clone", "--quiet", target.repository, "clone"], cwd=tmp_path, check=True)
    work = {"cwd": tmp_path / "clone", "check": True}
    by_me = "git config user.name a && git config user.email a@b && export GIT_EDITOR=true"
    subprocess.run(f"{by_me} && {undone} && git push --quiet", shell=True, stdout=subprocess.DEVNULL, **work)
    roll_back(target, dry_run=False)
    assert "finished the rollback" in capsys.readouterr().out
    assert served(target) == a.digest and champion_version() == "1"


def test_where_no_older_one_is_whole_another_promotion_is_advised(target: Target) -> None:
    a, b, c = promote_all(target.repository, "abc")
    for made in (a, b):
        damage(made, "manifest gone")
    with pytest.raises(MoonflowError, match="no older one can either: promote another checkpoint"):
        roll_back(target, dry_run=False)
    assert served(target) == c.digest


def test_back_to_nothing_needs_no_store(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_all(target.repository, "a")
    monkeypatch.delenv("MOONFLOW_STORE")
    roll_back(target, dry_run=False)
    assert gitops.find_promoted(target.repository, "local") is None and champion_version() == ""


@pytest.mark.parametrize("store", ["", "file://nowhere", "s3://b/runs"])
def test_a_store_that_cannot_be_asked_is_not_taken_for_an_empty_one(
    target: Target, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = promote_all(target.repository)
    monkeypatch.setenv("MOONFLOW_STORE", store)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(MoonflowError) as caught:
        roll_back(target, dry_run=False)
    assert "cannot be served" not in str(caught.value)
    assert served(target) == b.digest


def test_what_the_present_key_has_not_signed_is_not_rolled_back_to(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = signing.key_pair(tmp_path / "keys")
    _, other = signing.key_pair(tmp_path / "other")
    a, _ = promote_all(target.repository, "ab", key=private)
    (c,) = promote_all(target.repository, "c")  # not signed
    d, e = promote_all(target.repository, "de", key=private)
    monkeypatch.setenv(signing.PUBLIC_KEY, str(other))
    with pytest.raises(MoonflowError, match=r"\(the signature of .* is not valid for .*Key mismatch.*no older one"):
        roll_back(target, dry_run=False)
    assert served(target) == e.digest
    monkeypatch.setenv(signing.PUBLIC_KEY, str(public))
    roll_back(target, dry_run=False)
    assert served(target) == d.digest
    by_hand(target, "revert", "--no-edit", "HEAD")
    champion.follow(target.repository, "local", "moonflow", "champion")
    damage(d, "file gone")
    with pytest.raises(MoonflowError, match=r"the next older one that can is .* \(Promote 2\)"):  # c has no signature
        roll_back(target, dry_run=False)


@pytest.mark.parametrize(("arguments", "complaint"), [
    ((None, "", ""), "give a run's folder, or --repository"),
    ((Path("runs/absent"), "x.git", ""), "give a run's folder, or --repository"),
    ((None, "x.git", ""), "--repository needs --environment"),
    ((Path("runs/absent"), "", ""), "is not a run's folder: make one with `moonflow run --profile tiny`"),
])  # fmt: skip
def test_what_is_meant_must_be_clear(arguments: tuple[Path | None, str, str], complaint: str) -> None:
    with pytest.raises(MoonflowError, match=complaint):
        target_of(*arguments, alias="")


def test_the_target_of_an_older_run_is_known(tmp_path: Path) -> None:
    write_older_run(tmp_path, load_profile("smoke", ["serve.alias=best"]))
    target = target_of(tmp_path, "", "", "")
    assert (target.environment, target.alias) == ("local", "best")


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.parametrize("keep", [False, True])
def test_a_runs_own_services_come_up_for_its_rollback_or_are_those_that_it_keeps(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile.toml").write_text(load_profile("smoke").as_toml())
    with Services.start(tmp_path, keep=keep) as services, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", services.environment["MLFLOW_TRACKING_URI"])
        store = open_store(services.environment)
        key = Path(services.environment[signing.KEY])
        a, _ = promote_all(str(tmp_path / "gitops.git"), store=store, key=key)
    running = service_processes(tmp_path)
    try:
        done = moonflow("promote", str(tmp_path), "--rollback", timeout=300)
        assert service_processes(tmp_path) == running and bool(running) == keep
    finally:
        stop_kept(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local serves version 1 of moonflow again; it is champion" in done.stdout
    shown = moonflow("promote", str(tmp_path))
    assert f"local serves {a.uri}" in shown.stdout and 'Revert "Promote 2"' in shown.stdout
