from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.commands import complete


@pytest.fixture(scope="session")
def smoke_run(
    tmp_path_factory: pytest.TempPathFactory, record_testsuite_property: Callable[[str, object], None]
) -> tuple[Path, str]:
    """(run folder, what was printed) of one whole, undisturbed smoke run; its seconds go into --junit-xml."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    began = time.monotonic()
    printed = complete(run_dir)
    seconds = round(time.monotonic() - began, 1)
    record_testsuite_property("smoke_run_seconds", seconds)
    print(f"the smoke run took {seconds} s")
    return run_dir, printed
