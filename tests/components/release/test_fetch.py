"""What is loaded is what was promoted, whatever lies next to the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.release.fetch import bring, verify
from components.runtime.checkpoints.manifest import Manifest, describe
from components.runtime.store.folder_store import FolderStore
from components.serve import server
from components.serve.engine_process import EngineProcess
from components.serve.stage import serving
from model.boundary.errors import MoonflowError
from tests.published import publish_output, write_text_checkpoint


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


class Replacing(FolderStore):
    """A store in which somebody replaces a manifest as soon as it was read."""

    replacement = b""

    def get(self, key: str) -> bytes:
        data = super().get(key)
        if key.endswith("/manifest.json") and self.replacement:
            self.put(key, self.replacement)
        return data


def test_files_are_fetched_by_the_manifest_whose_digest_was_compared(tmp_path: Path) -> None:
    store = Replacing(f"file://{tmp_path}/objects")
    made = []
    for name in ("promoted", "others"):
        made.append(publish_output(store, write_text_checkpoint(tmp_path / name, name), "r", name))
    for file in made[1].files:  # whoever replaces the manifest can put the files there, too
        store.upload(tmp_path / "others" / file.name, f"r/promoted/0/{file.path}")
    store.replacement = made[1].canonical()
    bring(store, "r/promoted/0", made[0].sha256, tmp_path / "served")
    assert (tmp_path / "served" / "model.safetensors").read_text() == "promoted"
    assert verify(tmp_path / "served", made[0].sha256) == made[0].sha256
    with pytest.raises(MoonflowError, match="promote it again"):
        bring(store, "r/promoted/0", made[0].sha256, tmp_path / "served")


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


def engine_workers() -> set[int]:
    """Of this process: servers of other tests may have some."""
    children = psutil.Process().children()
    return {child.pid for child in children if "engine_worker" in " ".join(child.cmdline())}


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
    others = engine_workers()
    with pytest.raises(MoonflowError, match="was changed while it was loaded"), serving(folder, "moonflow", 60):
        pass
    assert len(started) == 1
    assert engine_workers() == others
