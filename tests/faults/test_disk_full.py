from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.runtime.manifest import fetch
from components.runtime.step import read_metrics, run_step
from components.runtime.store import ObjectStore
from model.errors import MoonflowError
from tests.counted import Stage, counting

pytestmark = pytest.mark.services


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "moonflow", folder], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_the_step_with_one_line_and_the_next_run_goes_on(
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
    assert begun == [5, 6, 7, 8], "it went on from the checkpoint before"
    fetch(store, made.uri, tmp_path / "got")
    assert [row["step"] for row in read_metrics(tmp_path / "got")] == [1, 2, 3, 4, 5, 6, 7, 8]
