"""Checkpoints as we export them, and a place for the code that transformers copies out of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from model.checkpoint.export import export  # noqa: E402
from model.network.config import preset  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from tests.configs import changed  # noqa: E402
from tests.drawn import random_model  # noqa: E402
from tests.tiny_folders import tiny_tokenizer  # noqa: E402

CONFIG = changed(preset("tiny"), {"rms_norm_eps": 1e-6})  # the eps that transformers gives the latent norms


@pytest.fixture(scope="module")
def model() -> KimiK25:
    return random_model(CONFIG, seed=7, std=0.06)


@pytest.fixture(scope="module")
def folder(model: KimiK25, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export") / "checkpoint"
    export(model, tiny_tokenizer(), made)
    return made


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where transformers keeps the checkpoints' own code, instead of in the home folder."""
    from transformers import dynamic_module_utils

    where = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(where))
        patch.syspath_prepend(str(where))
        yield where
