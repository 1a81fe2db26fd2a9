"""Real ranks that divide a round's episodes and its gradient learn as one process does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from model.boundary.errors import Unavailable
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.network.config import preset
from model.parallel.layout import Layout
from model.parallel.ranks import Ranks
from model.rl.environment import Episode
from model.rl.ptx import ptx
from model.rl.toggle import Toggle
from tests.equality import part_of
from tests.gloo import on_ranks
from tests.golden.recipe import seeded
from tests.rl.rounds import SETTINGS, trainer
from tests.step_services import FolderServices

LAYOUTS = {
    "rows of their own": Layout(),
    "experts": Layout(expert_parallel=2),
    "one row": Layout(sequence_parallel=2),
    "ZeRO-1": Layout(1),
    "experts and ZeRO-3": Layout(3, expert_parallel=2),
}
QUICK = ("rows of their own", "experts")
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in LAYOUTS]
ROUNDS, SAVED = 3, 2


def run(folder: Path, tokenizer: Path, data: Path, ranks: Ranks) -> tuple[Any, dict[str, Tensor]]:
    """Figures of each round that was played here, and the weights in the end."""
    services = FolderServices(folder, rank=ranks.rank)
    pretraining = ptx(DataFolder(data), weight=0.5, rows=2, tokens=256, seed=0)
    settings = replace(SETTINGS, iterations=ROUNDS, checkpoint_every=SAVED, learning_rate=3e-4)
    rl = trainer(
        Tokenizer.load(tokenizer), tokenizer, services, settings, toggle=Toggle(), ptx=pretraining, ranks=ranks
    )
    engine: Any = rl.engine
    for part in (engine, getattr(engine, "experts", None)):
        if part is not None:  # bfloat16 rounds otherwise where matrices are batched otherwise
            part.optimizer.precision = torch.float32
    rl.train()
    figures = {step: seeded(row) for step, row in services.logged.items()}
    return (figures, rl.toggle.budgets, rl.state.tokens_seen), dict(rl.model.state_dict())  # type: ignore[union-attr]


def on_rank(rank: int, name: str, folder: Path, tokenizer: Path, data: Path) -> Any:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    return run(folder, tokenizer, data, Ranks.join(LAYOUTS[name]))


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tokenizer_folder, data_folder, tmp_path_factory) -> tuple[Any, dict[str, Tensor]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run(tmp_path_factory.mktemp("alone"), tokenizer_folder, data_folder, Ranks())
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_episodes_rewards_and_weights_are_those_of_one_process(
    name: str, tokenizer_folder, data_folder, tmp_path: Path, alone
) -> None:
    """Then the last checkpoint is lost, and one process goes on from the one before."""
    (expected, *state), weights = alone
    assert expected[1]["loss/vision"] > 0 and expected[ROUNDS]["groups/with_signal"] > 0
    results = on_ranks(2, on_rank, tmp_path, name, tmp_path, tokenizer_folder, data_folder)
    for rank, ((figures, *found_state), found) in enumerate(results):
        assert found_state == state and figures.keys() == expected.keys()
        for step, row in expected.items():
            assert figures[step] == pytest.approx(row, rel=2e-3, abs=1e-5), step
        assert_close(found, part_of(weights, preset("tiny"), Ranks(rank, 2, LAYOUTS[name]).expert_share))

    (tmp_path / "published-1").unlink()
    (figures, *found_state), found = run(tmp_path, tokenizer_folder, data_folder, Ranks())
    assert list(figures) == [ROUNDS] and found_state == state
    assert figures[ROUNDS] == pytest.approx(expected[ROUNDS], rel=2e-3, abs=1e-5)
    assert_close(found, weights)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)


def on_rank_whose_tools_are_gone(rank: int, folder: Path, tokenizer: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    ranks = Ranks.join(Layout(expert_parallel=2))
    rl = trainer(Tokenizer.load(tokenizer), tokenizer, FolderServices(folder, rank=rank), SETTINGS, ranks=ranks)
    if rank == 1:

        async def rollout(sample: Sample, seed: int, t: int) -> Episode:
            raise Unavailable("no program can be run")

        rl.rollout = rollout
    rl.train()


def test_a_rank_that_fails_ends_its_process_instead_of_waiting_for_the_others(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProcessRaisedException, match="Unavailable: no program can be run"):
        on_ranks(2, on_rank_whose_tools_are_gone, tmp_path, tmp_path, tokenizer_folder)
