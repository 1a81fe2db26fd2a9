"""A checkpoint that two ranks write together."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from components.runtime.checkpoints import Publish, StoredCheckpoints
from components.runtime.manifest import File, Manifest, fetch, find, publish
from components.runtime.store import ObjectStore
from model.config import preset
from model.errors import MoonflowError
from model.hf import load_model
from model.multimodal import KimiK25
from model.train.layout import Layout
from model.train.ranks import Ranks
from model.train.saving import AsyncSaver
from model.train.slices import Slice, SliceReader, file_name
from pipelines.services import Services
from tests.gloo import on_ranks
from tests.tiny_folders import tiny_tokenizer

pytestmark = pytest.mark.services

KEY, SHAPE = "language_model.lm_head.weight/exp_avg", (7, 3)


class Around:
    def __init__(self, store: ObjectStore, prefix: str, work: Path) -> None:
        self.store, self.prefix, self.work = store, prefix, work
        self.checkpoints = StoredCheckpoints(store, prefix, work / "cache", None, {}, self.begin)

    def begin(self, *, index: int, **fields: Any) -> Publish:
        def now(folder: Path, added: Sequence[File]) -> Manifest:
            told = {"run_id": "r", "step": "s", "index": index, **fields}
            return publish(self.store, f"{self.prefix}/{index}", folder, added, **told)

        return now


def save_twice(rank: int, environment: Mapping[str, str], prefix: str, folder: Path) -> dict[str, Any]:
    """Checkpoint 0, and a checkpoint 1 for which the second rank cannot upload."""
    around = Around(ObjectStore.from_env(environment), prefix, folder / f"rank{rank}")
    ranks = Ranks(rank, 2, Layout(), dist.group.WORLD)
    model = KimiK25(preset("tiny"), seed=1)
    half_n = torch.arange(21.0)[rank * 10 : 10 + rank * 11]
    told: dict[str, Any] = {"error": ""}
    with AsyncSaver(around, folder / "tokenizer", ranks) as saver:  # type: ignore[arg-type]

        def save(index: int) -> None:
            state = {KEY: Slice(KEY, SHAPE, rank * 10, half_n)}
            weights = model.state_dict() if ranks.first else {}
            saver.save(model.config, weights, state, {"loop": {}}, index=index, tokens_seen=0, complete=True)

        save(0)
        told["newest"] = around.checkpoints.newest.sha256
        told["next"] = around.checkpoints.next_index
        if rank == 1:
            around.store.upload = refuse  # type: ignore[method-assign]
        try:
            save(1)
        except MoonflowError as error:
            told["error"] = str(error)
    return told


def refuse(path: Path, key: str) -> None:
    raise MoonflowError("the store is full")


def test_two_ranks_publish_one_checkpoint_or_none(services: Services, store: ObjectStore, tmp_path: Path) -> None:
    prefix = f"ranks/{uuid.uuid4().hex[:8]}"
    tiny_tokenizer().save(tmp_path / "tokenizer")
    told = on_ranks(2, save_twice, tmp_path, services.environment, prefix, tmp_path)
    made = fetch(store, f"{prefix}/0", tmp_path / "back")
    assert [one["newest"] for one in told] == [made.sha256] * 2 and [one["next"] for one in told] == [1, 1]
    names = {file.name for file in made.files}
    assert {file_name(0, 2), file_name(1, 2), "model.safetensors", "training_state.json"} <= names
    with SliceReader(tmp_path / "back") as reader:
        assert torch.equal(reader[KEY], torch.arange(21.0).view(SHAPE))
    loaded = load_model(tmp_path / "back").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in KimiK25(preset("tiny"), seed=1).state_dict().items())
    assert [one["error"] for one in told] == ["a checkpoint could not be saved, rank 1: the store is full"] * 2
    assert find(store, f"{prefix}/1") is None, "half a checkpoint is none"
