"""What a local run gives its tasks; whole runs are in test_smoke_run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from model.boundary.errors import MoonflowError
from pipelines import run
from pipelines.profile import load_profile
from tests.pipelines.older_run import write_older_run


@pytest.mark.parametrize(
    ("quota", "cores", "of_an_arm"),
    [("max 100000", 8, 4), ("300000 100000", 3, 1), ("150000 100000", 2, 1), ("50000 100000", 1, 1), (None, 8, 4)],
)
def test_tasks_get_the_cores_that_a_containers_quota_leaves(
    quota: str | None, cores: int, of_an_arm: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(run, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(run.os, "sched_getaffinity", lambda _: set(range(8)))
    assert run.cores_of_task(load_profile("tiny")) == cores
    assert run.cores_of_task(load_profile("fusion")) == of_an_arm  # two at once
    one_seed = load_profile("claims-swarm", ["run.seeds=1"])
    assert run.cores_of_task(one_seed) == cores  # one task after the other


def test_a_run_that_was_begun_with_other_steps_is_left_as_it_is(tmp_path: Path) -> None:
    profile, folder = load_profile("smoke"), tmp_path / "older"
    write_older_run(folder, profile)
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(
        MoonflowError, match=r"older was begun with .*\(without visual_rl, rejection_sft\): give another"
    ):
        run.run_locally(profile, folder, keep=False, console=Console())
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_a_clock_that_is_set_back_does_not_keep_a_run_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * (time.monotonic() - began))  # it runs backwards
    monkeypatch.setattr(run, "STOP_SECONDS", 0.3)
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; sleep 60 & wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert deaf.stdout is not None and deaf.stdout.readline()
    run.end_group(deaf)
    assert time.monotonic() - began < 10 and deaf.returncode == -9
    deaf.stdout.close()
