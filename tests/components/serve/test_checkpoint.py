"""What is loaded is what was promoted, whatever lies beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.runtime.manifest import Manifest, describe
from components.serve import server
from components.serve.checkpoint import verify
from components.serve.engine_process import EngineProcess
from components.serve.stage import serving
from model.errors import MoonflowError


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def replace_all(folder: Path) -> None:
    """Other weights, and a manifest that fits them."""
    (folder / "model.safetensors").write_bytes(b"other weights")
    before = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    files = tuple(describe(folder / file.name, folder) for file in before.files)
    (folder / "manifest.json").write_bytes(before.model_copy(update={"files": files}).canonical())


def test_a_manifest_that_was_replaced_with_its_files_is_refused(folder: Path) -> None:
    promoted = verify(folder)
    assert verify(folder, promoted) == promoted
    replace_all(folder)
    assert verify(folder) != promoted, "by itself it looks whole"
    with pytest.raises(MoonflowError, match=rf"manifest.json has sha256 .*, but {promoted} was promoted"):
        verify(folder, promoted)
    (folder / "manifest.json").unlink()
    with pytest.raises(MoonflowError, match="has no manifest.json, but"):
        verify(folder, promoted)


def test_a_server_that_knows_what_was_promoted_serves_nothing_else(folder: Path) -> None:
    promoted = verify(folder)
    replace_all(folder)
    with pytest.raises(MoonflowError, match="was promoted"), serving(folder, "moonflow", 30, promoted):
        pass
    with pytest.raises(SystemExit) as ended:
        server.main(["--checkpoint", str(folder), "--sha256", promoted])
    assert "was promoted" in str(ended.value.code)


def test_a_file_that_the_manifest_does_not_name_is_refused(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "modeling.py").write_text("code")
    with pytest.raises(MoonflowError, match="inner/modeling.py is not in the checkpoint's manifest"):
        verify(folder)


def test_files_are_compared_wherever_they_lay_in_the_store(folder: Path) -> None:
    before = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    files = tuple(file.model_copy(update={"key": f"files-1/{file.name}"}) for file in before.files)
    moved = before.model_copy(update={"files": files})
    (folder / "manifest.json").write_bytes(moved.canonical())
    assert verify(folder) == moved.sha256


def test_a_checkpoint_that_is_changed_while_it_is_loaded_is_not_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start: Callable[..., Any] = EngineProcess.start
    started: list[EngineProcess] = []

    async def swapped(checkpoint: Path, on_tokens: Callable[[int], None]) -> EngineProcess:
        weights = checkpoint / "model.safetensors"
        verified = weights.read_bytes()
        weights.write_bytes(verified[:-1] + bytes([verified[-1] ^ 1]))
        engine = await start(checkpoint, on_tokens)
        started.append(engine)
        weights.write_bytes(verified)  # as if nothing had been
        return engine

    monkeypatch.setattr(EngineProcess, "start", swapped)
    with pytest.raises(MoonflowError, match="was changed while it was loaded"), serving(folder, "moonflow", 60):
        pass
    assert started[0]._process.poll() is not None, "its engine is ended"
