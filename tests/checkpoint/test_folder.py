from __future__ import annotations

import json
from pathlib import Path

from model.checkpoint.file_names import PROCESSOR
from model.codec.image import ImageConfig
from tests.tiny_folders import write_checkpoint


def test_a_checkpoint_says_how_its_images_are_prepared(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    written = json.loads((folder / PROCESSOR).read_text())["media_proc_cfg"]
    assert ImageConfig(**written) == ImageConfig()
    assert written["patch_size"] == 14 and written["merge_kernel_size"] == 2 and written["in_patch_limit"] == 16384
