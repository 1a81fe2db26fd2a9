from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.runtime.checkpoints.manifest import fetch
from components.runtime.step import read_metrics, run_step
from components.runtime.store import s3
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.services import Services
from tests.counted import Stage, counting

pytestmark = pytest.mark.services


def test_a_full_disk_ends_the_step_with_one_line_and_the_next_run_continues(
    step_environment: str,
    store: ObjectStore,
    define: Callable[[Stage], None],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(small_disk))
    filler = small_disk / "filler"

    def another_program(done: int) -> None:
        if done == 5:
            filler.write_bytes(bytes(1_500_000))

    define(counting(meanwhile=another_program, size=600_000))
    with pytest.raises(MoonflowError, match="disk full while writing .*free some space") as raised:
        run_step("counted", {"steps": 8})
    assert "\n" not in str(raised.value)

    filler.unlink()
    begun: list[int] = []
    define(counting(meanwhile=begun.append, size=600_000))
    made = run_step("counted", {"steps": 8})
    assert begun == [5, 6, 7, 8], "it continued from the checkpoint before"
    fetch(store, made.uri, tmp_path / "got")
    assert [row["step"] for row in read_metrics(tmp_path / "got")] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_a_full_disk_of_the_store_is_told_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "run" / "store"
    disk.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "moonflow", disk], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    monkeypatch.setattr(s3, "ATTEMPTS", 2)  # or it would wait half a minute
    try:
        with Services.start(tmp_path / "run") as services:
            store = open_store(services.environment)
            data = {f"full/{number}": os.urandom(4 << 20) for number in range(20)}
            with pytest.raises(MoonflowError, match="could not serve .*its disk may be full; free some space"):
                for key, content in data.items():
                    store.put(key, content)
            kept = store.list("full/")
            assert len(kept) > 5 and all(store.get(key) == data[key] for key in kept)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
