"""Checkpoints as we export them, and a place for the code that transformers copies out of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from model.config import ModelConfig, RopeScaling, preset  # noqa: E402
from model.hf import export  # noqa: E402
from model.multimodal import KimiK25  # noqa: E402
from tests.peers import randomise  # noqa: E402
from tests.tiny_folders import tiny_tokenizer  # noqa: E402

YARN = RopeScaling(factor=4.0, original_max_position_embeddings=64)


def tiny(eps: float = 1e-6, scaling: RopeScaling | None = None) -> ModelConfig:
    config = preset("tiny")
    text = config.text_config.model_copy(update={"rms_norm_eps": eps, "rope_scaling": scaling})
    return config.model_copy(update={"text_config": text})


def random_model(config: ModelConfig, seed: int = 7) -> KimiK25:
    model = KimiK25(config)
    randomise(model, seed, std=0.06)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> KimiK25:
    return random_model(tiny())


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
