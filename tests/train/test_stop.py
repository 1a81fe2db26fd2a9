"""A request to end that reaches one rank ends all of them after the same step; two real ranks over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.slices import file_name
from model.data.batches.folder import DataFolder
from model.parallel.layout import Layout
from model.parallel.ranks import Ranks
from model.train import stop
from tests.gloo import on_ranks
from tests.step_services import FolderServices
from tests.tiny_folders import write_training_folder
from tests.training import phase, train_tiny

STEPS, ASKED_AT = 5, 2


def of_rank(rank: int, folder: Path) -> dict[str, Any]:
    ranks = Ranks.join(Layout(zero_stage=1))
    data = DataFolder(folder / "data")
    services, ended = FolderServices(folder, rank=rank), False
    if rank == 1:
        services.on_update = lambda done: stop.request() if done == ASKED_AT else None
    try:
        train_tiny(data, [phase(data, {"recall": 1.0}, STEPS, 1e-3)], services, ranks)
    except stop.Terminated:
        ended = True
    return {"ended": ended, "steps": list(services.reports), "saved": [complete for *_, complete in services.saved]}


@pytest.mark.slow
def test_one_rank_that_is_asked_ends_all_after_the_same_saved_step(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_training_folder(tmp_path / "data")
    found = on_ranks(2, of_rank, tmp_path, tmp_path)
    steps = list(range(1, ASKED_AT + 1))
    first, second = found
    assert first == {"ended": True, "steps": steps, "saved": [False]}
    assert second == {"ended": True, "steps": steps, "saved": []}, "the first rank publishes"
    assert {path.name for path in tmp_path.glob("saved-0/optimizer-*")} == {file_name(0, 2), file_name(1, 2)}
