"""The folder among everybody's temporary files, whoever makes it first: a step or the kernels."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from components.runtime.step import run_step
from model.boundary.errors import MoonflowError
from model.boundary.private_folder import private_folder
from model.network.kernels import numbers
from tests.counted import Stage, counting


def test_the_folder_is_made_for_this_user_alone_and_one_of_a_default_mode_becomes_so(tmp_path: Path) -> None:
    made = private_folder(tmp_path)
    assert made.parent == tmp_path and stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    assert private_folder(tmp_path) == made and stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_and_a_link_are_refused(tmp_path: Path) -> None:
    made = private_folder(tmp_path)
    made.chmod(0o777)
    with pytest.raises(MoonflowError, match="only this user .* can write: delete it, or set TMPDIR"):
        private_folder(tmp_path)
    made.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MoonflowError, match="is not a folder that only this user"):
        private_folder(tmp_path)


def test_after_a_step_without_a_run_folder_kernels_are_kept(
    tmp_path: Path, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOONFLOW_RUN_DIR", "NUMBA_CACHE_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOONFLOW_RUN_ID", "run")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    define(counting())
    mask = os.umask(0o022)
    try:
        run_step("counted", {})
    finally:
        os.umask(mask)
    (tmp_path / "file").touch()
    kept = numbers.cache_folder(tmp_path / "file", tmp_path)
    assert kept is not None and kept.parent == private_folder(tmp_path)
