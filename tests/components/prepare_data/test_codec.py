"""Data for a checkpoint that training starts from is read with that checkpoint's tokenizer and image settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from components.prepare_data.codec import take_over
from components.runtime.checkpoints import manifest as manifests
from components.runtime.store.folder_store import FolderStore
from model.boundary.errors import MoonflowError
from model.codec.tokenizer import Tokenizer
from tests.tiny_folders import write_checkpoint


class Context:
    """What ``take_over`` uses of a step's context."""

    def __init__(self, folder: Path) -> None:
        self.store, self._folder = FolderStore(f"file://{folder}/store"), folder
        self.fetched: list[str] = []

    def fetch(self, uri: str, names: list[str]) -> Path:
        self.fetched += names
        manifests.fetch(self.store, uri, self._folder / "fetched", names)
        return self._folder / "fetched"


def published(context: Context, folder: Path, index: int = 0) -> str:
    named: dict[str, Any] = {"run_id": "base", "step": "import_checkpoint", "index": index, "kind": "checkpoint"}
    return manifests.publish(context.store, f"base/import_checkpoint/{index}", folder, **named).uri


def test_tokenizer_image_settings_and_licence_are_taken_over_and_weights_are_not_fetched(tmp_path: Path) -> None:
    context, folder = Context(tmp_path), write_checkpoint(tmp_path / "checkpoint")
    (folder / "LICENSE.txt").write_text("terms")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["media_proc_cfg"]["in_patch_limit"] = 64
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "data").mkdir()
    tokenizer, image = take_over(cast(Any, context), published(context, folder), tmp_path / "data")
    assert tokenizer.digest == Tokenizer.load(folder).digest == Tokenizer.load(tmp_path / "data").digest
    assert image.in_patch_limit == 64
    assert not [name for name in context.fetched if name.endswith(".safetensors")]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "LICENSE.txt",
    }  # fmt: skip


def test_another_models_tokenizer_and_a_part_of_a_checkpoint_are_one_line(tmp_path: Path) -> None:
    context, folder = Context(tmp_path), write_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MoonflowError, match=r"but the model has .*tokenizer it was trained with"):
        take_over(cast(Any, context), published(context, folder), tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(MoonflowError, match=r"lacks preprocessor_config\.json"):
        take_over(cast(Any, context), published(context, folder, 1), tmp_path)
