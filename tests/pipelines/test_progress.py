from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from components.runtime.steps import STEPS
from pipelines.memory import PeakMemory
from pipelines.progress import busy_seconds, duration, progress_table, task_state
from tests.waiting import happens


def tell(run_dir: Path, folder: str, step: str, **content: object) -> None:
    (run_dir / folder).mkdir(exist_ok=True)
    (run_dir / folder / f"{step}.json").write_text(json.dumps(content))


def shown(run_dir: Path) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(progress_table(run_dir, time.monotonic() - 75, STEPS))
    return capture.get()


def test_the_table_tells_step_speed_loss_and_time_left_in_80_columns(tmp_path: Path) -> None:
    now = time.time()
    tell(tmp_path, "tasks", "prepare_data", state="done", started=now - 60, ended=now - 44, kept=False)
    tell(tmp_path, "tasks", "vit_pretrain", state="running", started=now - 40)
    tell(
        tmp_path,
        "progress",
        "vit_pretrain",
        **{"done": 123_456, "total": 654_321, "updated": now, "eta_s": 721.0},
        figures={"tokens_per_s": 123_456.7, "loss": 10.1234},
    )
    lines = shown(tmp_path).splitlines()
    assert "moonflow run" in lines[0] and "75 s" in lines[0]
    row = next(line for line in lines if "vit_pretrain" in line)
    assert row.split() == ["vit_pretrain", "running", "123456/654321", "123,457", "10.123", "40", "s", "12m", "1s"]
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if "prepare_data" in line).split() == ["prepare_data", "done", "16", "s"]


def test_what_never_began_when_the_run_ends_is_skipped(tmp_path: Path) -> None:
    assert task_state(tmp_path, "promote").state == "waiting"
    tell(tmp_path, "tasks", "finish", state="done", started=1.0, ended=2.0, kept=False)
    assert {task_state(tmp_path, step).state for step in STEPS if step != "finish"} == {"skipped"}


def test_steps_side_by_side_are_busy_once(tmp_path: Path) -> None:
    for step, started, ended in (("early", 10, 20), ("late", 12, 15), ("mid", 19, 24), ("finish", 30, 31)):
        tell(tmp_path, "tasks", step, state="done", started=started, ended=ended)
    assert busy_seconds(tmp_path, ["finish", "early", "mid", "late", "never begun"]) == 14 + 1


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.99, "10.0 s"), (97.2, "97 s"), (725.0, "12m 5s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


CHILD = "import sys; held = bytearray(300 << 20); print('held', flush=True); sys.stdin.read()"


def test_peak_memory_counts_what_children_hold() -> None:
    with PeakMemory() as before:
        time.sleep(0.1)
    with (
        PeakMemory() as peak,
        subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        assert happens(lambda: peak.bytes >= before.bytes + (300 << 20), 60), (before.bytes, peak.bytes)
        child.communicate()
