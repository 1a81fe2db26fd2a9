from __future__ import annotations

import pytest

from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from tests.tiny_folders import tiny_tokenizer, write_data_folder


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def data_folder(tmp_path) -> DataFolder:
    return DataFolder(write_data_folder(tmp_path / "data"))
