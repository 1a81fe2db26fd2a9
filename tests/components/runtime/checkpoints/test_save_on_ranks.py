"""A checkpoint that two ranks write together."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from components.runtime.checkpoints.manifest import fetch, find
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.checkpoint.saving import AsyncSaver
from model.checkpoint.slices import Slice, SliceReader, file_name
from model.network.config import preset
from model.network.initial import new_model
from pipelines.services import Services
from tests.gloo import on_ranks
from tests.published import checkpoints_of_step
from tests.tiny_folders import tiny_tokenizer

pytestmark = pytest.mark.services

KEY, SHAPE = "language_model.lm_head.weight/exp_avg", (7, 3)


def save_twice(rank: int, environment: Mapping[str, str], run_id: str, folder: Path) -> dict[str, Any]:
    """Checkpoint 0, and a checkpoint 1 for which the second rank cannot upload."""
    store, work = open_store(environment), folder / f"rank{rank}"
    checkpoints = checkpoints_of_step(store, run_id, "s", work / "cache")
    model = new_model(preset("tiny"), seed=1)
    half_n = torch.arange(21.0)[rank * 10 : 10 + rank * 11]
    told: dict[str, Any] = {"error": ""}
    with AsyncSaver(checkpoints, work, folder / "tokenizer", rank, 2) as saver:

        def save(index: int) -> None:
            state = {KEY: Slice(KEY, SHAPE, rank * 10, half_n)}
            weights = model.state_dict() if rank == 0 else {}
            saver.save(model.config, weights, state, {"loop": {}}, index=index, tokens_seen=0, complete=True)

        save(0)
        told["newest"] = checkpoints.newest.sha256
        told["next"] = checkpoints.next_index
        if rank == 1:
            store.upload = refuse  # type: ignore[method-assign]
        try:
            save(1)
        except MoonflowError as error:
            told["error"] = str(error)
    return told


def refuse(path: Path, key: str) -> None:
    raise MoonflowError("the store is full")


def test_two_ranks_publish_one_checkpoint_or_none(services: Services, store: ObjectStore, tmp_path: Path) -> None:
    run_id = f"ranks/{uuid.uuid4().hex[:8]}"
    tiny_tokenizer().save(tmp_path / "tokenizer")
    told = on_ranks(2, save_twice, tmp_path, services.environment, run_id, tmp_path)
    made = fetch(store, f"{run_id}/s/0", tmp_path / "back")
    assert [one["newest"] for one in told] == [made.sha256] * 2 and [one["next"] for one in told] == [1, 1]
    names = {file.name for file in made.files}
    assert {file_name(0, 2), file_name(1, 2), "model.safetensors", "training_state.json"} <= names
    with SliceReader(tmp_path / "back") as reader:
        assert torch.equal(reader[KEY], torch.arange(21.0).view(SHAPE))
    loaded = load_model(tmp_path / "back").state_dict()
    assert all(
        torch.equal(loaded[name], value) for name, value in new_model(preset("tiny"), seed=1).state_dict().items()
    )
    assert [one["error"] for one in told] == ["a checkpoint could not be saved, rank 1: the store is full"] * 2
    assert find(store, f"{run_id}/s/1") is None, "half a checkpoint is none"
