"""A little real data."""

from __future__ import annotations

import pytest

from model.data.batches.folder import DataFolder
from tests.tiny_folders import write_training_folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return DataFolder(write_training_folder(tmp_path_factory.mktemp("data")))
