"""``moonflow promote``: real Git, a real registry, and once the services of a run's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.promote import champion, gitops, registry
from components.promote.git import clone, git, resolve
from components.promote.overlay import Change
from model.errors import MoonflowError
from pipelines.profile import load_profile
from pipelines.promotion import Where, roll_back, show, where
from pipelines.services import Services

DIGESTS = ("a" * 64, "b" * 64)


def promote_two(repository: str) -> list[str]:
    """Two promotions to the environment local, the second one champion; their commits."""
    made = []
    for digest in DIGESTS:
        number = registry.register("moonflow", "candidate", f"s3://b/{digest[0]}", {"manifest_sha256": digest})
        change = Change(f"s3://b/{digest[0]}", digest)
        made.append(gitops.promote(repository, "local", change, f"Promote {number}", f"local/run/{digest}").commit)
    champion.follow(repository, "local", "moonflow", "champion")
    return made


def champion_now() -> str:
    found = registry.aliased("moonflow", "champion")
    return found.number if found else ""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return where(None, str(tmp_path / "gitops.git"), "local", "")


def test_once_back_and_no_further_unasked(place: Where, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = promote_two(place.repository)
    roll_back(place, dry_run=True)
    assert f"would revert {second[:12]} (Promote 2)" in capsys.readouterr().out
    assert champion_now() == "2" and gitops.read_promoted(place.repository, "local").commit == second
    roll_back(place, dry_run=False)
    said = capsys.readouterr().out
    assert f"reverted {second[:12]}" in said and "local serves version 1 of moonflow again; it is champion" in said
    assert champion_now() == "1" and gitops.read_promoted(place.repository, "local").manifest_sha256 == DIGESTS[0]
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
    promote_two(place.repository)
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
    assert gitops.read_promoted(place.repository, "local").manifest_sha256 == DIGESTS[0] and champion_now() == "1"
    # What was taken back is promoted anew, and that can be rolled back.
    gitops.promote(place.repository, "local", Change("s3://b/b", DIGESTS[1]), "Promote 2 again", "local/other/b")
    champion.follow(place.repository, "local", "moonflow", "champion")
    roll_back(place, dry_run=False)
    assert champion_now() == "1"


def test_a_rollback_that_was_itself_reverted_is_none(place: Where, capsys: pytest.CaptureFixture[str]) -> None:
    promote_two(place.repository)
    roll_back(place, dry_run=False)
    by_hand(place, "revert", "--no-edit", head(place))
    assert gitops.read_promoted(place.repository, "local").manifest_sha256 == DIGESTS[1]
    champion.follow(place.repository, "local", "moonflow", "champion")
    roll_back(place, dry_run=False)
    assert gitops.read_promoted(place.repository, "local").manifest_sha256 == DIGESTS[0] and champion_now() == "1"


def test_without_a_promotion_there_is_nothing_to_roll_back(place: Where) -> None:
    promote_two(place.repository)
    with pytest.raises(MoonflowError, match="dev has no promotion to roll back"):
        roll_back(where(None, place.repository, "dev", ""), dry_run=False)


def test_a_rollback_that_died_after_the_push_is_finished_and_goes_no_further(
    place: Where, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote_two(place.repository)

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
    assert gitops.read_promoted(place.repository, "local").manifest_sha256 == DIGESTS[0]


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
        promote_two(str(tmp_path / "gitops.git"))
    command = [sys.executable, "-m", "pipelines.cli", "promote", str(tmp_path)]
    done = subprocess.run([*command, "--rollback"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "local serves version 1 of moonflow again; it is champion" in done.stdout
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "local serves s3://b/a" in shown.stdout and 'Revert "Promote 2"' in shown.stdout
