"""A model whose weights tell every tensor from every other, and its checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.export import save_model
from model.network.config import preset
from model.network.multimodal import KimiK25
from tests.drawn import random_model


@pytest.fixture(scope="package")
def model() -> KimiK25:
    return random_model(preset("tiny"), seed=7)


@pytest.fixture
def folder(model: KimiK25, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
