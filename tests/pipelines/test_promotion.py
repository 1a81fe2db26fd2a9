"""``moonflow promote``: real Git, a real registry, and once the services of a run's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.promote import champion, gitops, registry
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


def test_back_and_back_again_until_nothing_is_left(place: Where, capsys: pytest.CaptureFixture[str]) -> None:
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
    roll_back(place, dry_run=False)
    assert "local serves nothing now; the alias champion is removed" in capsys.readouterr().out
    assert champion_now() == ""
    with pytest.raises(MoonflowError, match="local has no promotion to roll back"):
        roll_back(place, dry_run=False)


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
