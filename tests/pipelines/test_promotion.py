"""``moonflow promote``: real Git, a real registry, and once the services of a run's folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.promote import champion, gitops, registry, signing
from components.promote.git import clone, git, resolve
from components.promote.overlay import Change
from components.runtime import manifest as manifests
from components.runtime.store import ObjectStore
from model.errors import MoonflowError
from pipelines.profile import load_profile
from pipelines.promotion import Where, roll_back, show, where
from pipelines.services import Services


@dataclass(frozen=True)
class Made:
    """A promotion of a checkpoint that stands in a store."""

    commit: str
    digest: str
    uri: str


def promote_all(repository: str, letters: str = "ab", store: ObjectStore | None = None, key: Path | None = None
                ) -> list[Made]:  # fmt: skip
    """A promotion a letter to the environment local, the last one champion."""
    store = store or ObjectStore.from_env()
    made = []
    for letter in letters:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(letter)
            (Path(folder) / "model.safetensors").write_text(letter * 9)
            if key is not None:
                signing.sign(Path(folder), key)
            stored = manifests.publish(
                store, f"{letter}/export/0", Path(folder), run_id=letter, step="parl", index=0, kind="checkpoint"
            )
        tags = {"manifest_sha256": stored.sha256}
        number = registry.register("moonflow", "candidate", stored.uri, tags)
        change, name = Change(stored.uri, stored.sha256), f"local/run/{stored.sha256}"
        commit = gitops.promote(repository, "local", change, f"Promote {number}", name).commit
        made.append(Made(commit, stored.sha256, stored.uri))
    champion.follow(repository, "local", "moonflow", "champion")
    return made


def champion_now() -> str:
    found = registry.aliased("moonflow", "champion")
    return found.number if found else ""


def served(place: Where) -> str:
    return gitops.read_promoted(place.repository, "local").manifest_sha256


@pytest.fixture
def place(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_mlflow, tmp_path)}")
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.delenv(signing.PUBLIC_KEY, raising=False)
    return where(None, str(tmp_path / "gitops.git"), "local", "")


def test_once_back_and_no_further_unasked(place: Where, capsys: pytest.CaptureFixture[str]) -> None:
    (first, a), (second, _) = ((made.commit, made.digest) for made in promote_all(place.repository))
    roll_back(place, dry_run=True)
    assert f"would revert {second[:12]} (Promote 2)" in capsys.readouterr().out
    assert champion_now() == "2" and gitops.read_promoted(place.repository, "local").commit == second
    roll_back(place, dry_run=False)
    said = capsys.readouterr().out
    assert f"reverted {second[:12]}" in said and "local serves version 1 of moonflow again; it is champion" in said
    assert champion_now() == "1" and served(place) == a
    show(place)
    shown = capsys.readouterr().out.splitlines()
    assert f"* {first[:12]} Promote 1" in shown  # the star marks what is in force
    assert shown[2].endswith('Revert "Promote 2"') and f"  {second[:12]} Promote 2" in shown
    for dry_run in (True, False):
        roll_back(place, dry_run=dry_run)
        said = capsys.readouterr().out
        assert f"local is already rolled back by {head(place)[:12]}, to {first[:12]} (Promote 1)" in said
        assert champion_now() == "1" and gitops.read_promoted(place.repository, "local").commit != second
    # Further back by hand, as the last line said; the alias follows.
    assert f"git revert {first[:12]}" in said
    by_hand(place, "revert", "--no-edit", first)
    roll_back(place, dry_run=False)
    assert "finished the rollback" in capsys.readouterr().out
    assert champion_now() == ""
    roll_back(place, dry_run=False)
    assert "to nothing" in capsys.readouterr().out


def by_hand(place: Where, *arguments: str) -> None:
    """What somebody pushes who works with Git alone."""
    with clone(place.repository) as folder:
        git(folder, *arguments)
        git(folder, "push", "--quiet", "origin", "HEAD:main")


def head(place: Where) -> str:
    with clone(place.repository) as folder:
        return resolve(folder, "HEAD")


def test_a_promotion_that_never_answered_is_taken_back_alone(
    place: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = promote_all(place.repository)
    registry.point("moonflow", "champion", "1")  # its serve check failed: the alias never moved
    roll_back(place, dry_run=False)
    overlay = "overlays/local/kustomization.yaml"
    with clone(place.repository) as folder:  # somebody tunes the overlay meanwhile
        (folder / overlay).write_text((folder / overlay).read_text() + "# larger\n")
        git(folder, "commit", "--quiet", "--all", "--message", "Tune")
        git(folder, "push", "--quiet", "origin", "HEAD:main")
    for _ in range(2):
        capsys.readouterr()
        roll_back(place, dry_run=False)
        assert "already rolled back" in capsys.readouterr().out
    assert served(place) == a.digest and champion_now() == "1"
    # What was taken back is promoted anew, and that can be rolled back.
    gitops.promote(place.repository, "local", Change(b.uri, b.digest), "Promote 2 again", "local/other/b")
    champion.follow(place.repository, "local", "moonflow", "champion")
    roll_back(place, dry_run=False)
    assert champion_now() == "1"


def test_a_rollback_that_was_itself_reverted_is_none(place: Where, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = promote_all(place.repository)
    roll_back(place, dry_run=False)
    by_hand(place, "revert", "--no-edit", head(place))
    assert served(place) == b.digest
    champion.follow(place.repository, "local", "moonflow", "champion")
    roll_back(place, dry_run=False)
    assert served(place) == a.digest and champion_now() == "1"


def test_without_a_promotion_there_is_nothing_to_roll_back(place: Where) -> None:
    promote_all(place.repository)
    with pytest.raises(MoonflowError, match="dev has no promotion to roll back"):
        roll_back(where(None, place.repository, "dev", ""), dry_run=False)


def test_a_rollback_that_died_after_the_push_is_finished_and_goes_no_further(
    place: Where, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = promote_all(place.repository)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(champion, "follow", dies)
        with pytest.raises(KeyboardInterrupt):
            roll_back(place, dry_run=False)
    assert champion_now() == "2"  # Git is back, the alias is not
    roll_back(place, dry_run=False)
    assert "finished the rollback" in capsys.readouterr().out
    assert champion_now() == "1"
    assert served(place) == a.digest


def damage(made: Made, kind: str) -> None:
    """Do to a stored checkpoint what retention, a colleague or a disk does."""
    store = ObjectStore.from_env()
    if kind == "manifest gone":
        store.delete(f"{made.uri}/manifest.json")
    elif kind == "another manifest":
        kept = store.get(f"{made.uri}/manifest.json").replace(b'"tokens_seen": 0', b'"tokens_seen": 1')
        store.put(f"{made.uri}/manifest.json", kept)
    elif kind == "manifest damaged":
        store.put(f"{made.uri}/manifest.json", b"{")
    elif kind == "file gone":
        (weights,) = (file for file in manifests.read(store, made.uri).files if file.name == "model.safetensors")
        store.delete(f"{made.uri}/{weights.place}")
    elif kind == "file cut":
        (weights,) = (file for file in manifests.read(store, made.uri).files if file.name == "model.safetensors")
        store.put(f"{made.uri}/{weights.place}", b"")


@pytest.mark.parametrize(("kind", "says"), [
    ("manifest gone", r"has no manifest\.json"),
    ("another manifest", r"its manifest has sha256 [0-9a-f]{64} now"),
    ("manifest damaged", r"manifest\.json is damaged"),
    ("file gone", r"of its files 1 are gone, model\.safetensors first"),
    ("file cut", r"of its files 1 have another size, model\.safetensors first"),
])  # fmt: skip
def test_what_can_no_longer_be_fetched_is_not_rolled_back_to(
    place: Where, kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c, d = promote_all(place.repository, "abcd")
    for made in (b, c):
        damage(made, kind)
    for dry_run in (True, False):
        with pytest.raises(MoonflowError, match=says) as caught:
            roll_back(place, dry_run=dry_run)
        said = str(caught.value)
        assert "\n" not in said and f"it would go to {c.commit[:12]} (Promote 3), which cannot be served" in said
        assert served(place) == d.digest and champion_now() == "4"
    # The way that it names leads there.
    undone = " && ".join(f"git revert {made.commit[:12]}" for made in (d, c, b))
    assert f"the next older one that can is {a.commit[:12]} (Promote 1): {undone} in a clone of " in said
    subprocess.run(["git", "clone", "--quiet", place.repository, "clone"], cwd=tmp_path, check=True)
    work = {"cwd": tmp_path / "clone", "check": True}
    by_me = "git config user.name a && git config user.email a@b && export GIT_EDITOR=true"
    subprocess.run(f"{by_me} && {undone} && git push --quiet", shell=True, stdout=subprocess.DEVNULL, **work)
    roll_back(place, dry_run=False)
    assert "finished the rollback" in capsys.readouterr().out
    assert served(place) == a.digest and champion_now() == "1"


def test_where_no_older_one_is_whole_another_promotion_is_advised(place: Where) -> None:
    a, b, c = promote_all(place.repository, "abc")
    for made in (a, b):
        damage(made, "manifest gone")
    with pytest.raises(MoonflowError, match="no older one can either: promote another checkpoint"):
        roll_back(place, dry_run=False)
    assert served(place) == c.digest


def test_back_to_nothing_needs_no_store(place: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_all(place.repository, "a")
    monkeypatch.delenv("MOONFLOW_STORE")
    roll_back(place, dry_run=False)
    assert gitops.find_promoted(place.repository, "local") is None and champion_now() == ""


@pytest.mark.parametrize("store", ["", "file://nowhere", "s3://b/runs"])
def test_a_store_that_cannot_be_asked_is_not_taken_for_an_empty_one(
    place: Where, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = promote_all(place.repository)
    monkeypatch.setenv("MOONFLOW_STORE", store)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(MoonflowError) as caught:
        roll_back(place, dry_run=False)
    assert "cannot be served" not in str(caught.value)
    assert served(place) == b.digest


def test_what_the_present_key_has_not_signed_is_not_rolled_back_to(
    place: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = signing.key_pair(tmp_path / "keys")
    _, other = signing.key_pair(tmp_path / "other")
    a, _ = promote_all(place.repository, "ab", key=private)
    (c,) = promote_all(place.repository, "c")  # not signed
    d, e = promote_all(place.repository, "de", key=private)
    monkeypatch.setenv(signing.PUBLIC_KEY, str(other))
    with pytest.raises(MoonflowError, match=r"\(the signature of .* does not stand with .*Key mismatch.*no older one"):
        roll_back(place, dry_run=False)
    assert served(place) == e.digest
    monkeypatch.setenv(signing.PUBLIC_KEY, str(public))
    roll_back(place, dry_run=False)
    assert served(place) == d.digest
    by_hand(place, "revert", "--no-edit", "HEAD")
    champion.follow(place.repository, "local", "moonflow", "champion")
    damage(d, "file gone")
    with pytest.raises(MoonflowError, match=r"the next older one that can is .* \(Promote 2\)"):  # c has no signature
        roll_back(place, dry_run=False)


@pytest.mark.parametrize(("arguments", "complaint"), [
    ((None, "", ""), "give a run's folder, or --repository"),
    ((Path("runs/absent"), "x.git", ""), "give a run's folder, or --repository"),
    ((None, "x.git", ""), "--repository needs --environment"),
    ((Path("runs/absent"), "", ""), "is not a run's folder"),
])  # fmt: skip
def test_what_is_meant_must_be_clear(arguments: tuple[Path | None, str, str], complaint: str) -> None:
    with pytest.raises(MoonflowError, match=complaint):
        where(*arguments, alias="")


@pytest.mark.services
def test_a_runs_own_services_come_up_for_its_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profile.toml").write_text(load_profile("smoke").as_toml())
    with Services.start(tmp_path) as services, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", services.environment["MLFLOW_TRACKING_URI"])
        store = ObjectStore.from_env(services.environment)
        key = Path(services.environment[signing.KEY])
        a, _ = promote_all(str(tmp_path / "gitops.git"), store=store, key=key)
    command = [sys.executable, "-m", "pipelines.cli", "promote", str(tmp_path)]
    done = subprocess.run([*command, "--rollback"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "local serves version 1 of moonflow again; it is champion" in done.stdout
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"local serves {a.uri}" in shown.stdout and 'Revert "Promote 2"' in shown.stdout
