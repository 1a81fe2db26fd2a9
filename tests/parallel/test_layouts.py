"""Real ranks that divide experts or rows train as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import model.optimizer.muon_clip as optimizer
from model.checkpoint.export import save_part
from model.checkpoint.load import load_model
from model.checkpoint.slices import SliceReader, as_slices, write_slices
from model.checkpoint.tensor_names import released_tensors
from model.data.batches.packing import pack
from model.network.batch import Batch
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.optimizer.muon_clip import is_muon
from model.optimizer.optimization import Optimization
from model.parallel.expert_parallel import is_expert
from model.parallel.layout import Layout
from model.parallel.ranks import Ranks
from model.train.engine import PlainEngine, open_engine
from tests.configs import NARROW
from tests.drawn import rows_together, sample
from tests.equality import part_of, same_tensors
from tests.gloo import on_ranks
from tests.training import take_step

STEPS, ROWS, TOKENS = 50, 2, 32
pytestmark = pytest.mark.slow

LAYOUTS = {
    "experts": (2, Layout(expert_parallel=2), STEPS),
    "rows": (2, Layout(sequence_parallel=2), STEPS),
    "experts and ZeRO-1": (2, Layout(1, expert_parallel=2), 12),
    "experts and ZeRO-2": (2, Layout(2, expert_parallel=2), 4),
    "rows under ZeRO-1": (2, Layout(1, sequence_parallel=2), 12),
    "rows under ZeRO-2": (2, Layout(2, sequence_parallel=2), 4),
    "experts and rows, ZeRO-3": (2, Layout(3, 2, 2), 4),
    "experts and rows": (4, Layout(0, 2, 2), 4),
    "experts of all, rows of two": (4, Layout(0, 4, 2), 4),
}


def row(step: int, number: int) -> Batch:
    """One of the global batch's rows; five batches return in turn, so that there is something to learn."""
    seed = 10 * (step % 5) + number
    members = [sample(seed, 3, (1, 4, 8), 6), sample(seed + 100, 12)] if number else [sample(seed, 9), sample(seed, 14)]
    return pack(members, NARROW.pad_token_id, tokens_per_row=TOKENS)


def rows_of(step: int, part: int, parts: int) -> Batch:
    """What one of ``parts`` data ranks reads."""
    mine = [row(step, number) for number in range(ROWS)][part * ROWS // parts : (part + 1) * ROWS // parts]
    assert all(len(one.input_ids_BT) == 1 for one in mine)
    return rows_together(mine)


def begin(model: KimiK25, ranks: Ranks) -> Any:
    engine: Any = open_engine(model, Optimization(STEPS, 3e-3, warmup_steps=5), ranks)
    assert isinstance(engine, PlainEngine) == (ranks.layout.zero_stage == 0)
    # bfloat16 rounds otherwise where matrices are batched otherwise
    for part in (engine, getattr(engine, "experts", None)):
        if part is not None:
            part.optimizer.precision = torch.float32
    return engine


def train(ranks: Ranks, steps: int) -> tuple[list[dict[str, float]], Any, int]:
    """Figures of every step, the engine, and how many matrices the last step orthogonalised here."""
    counted: list[int] = []
    plain = optimizer.orthogonalise

    def counting(matrices: Tensor, *settings: Any) -> Tensor:
        counted.append(len(matrices))
        return plain(matrices, *settings)

    optimizer.orthogonalise = counting
    try:
        engine, figures = begin(new_model(NARROW, 4, ranks.expert_share).train(), ranks), []
        for step in range(steps):
            counted.clear()
            batch = rows_of(step, ranks.data_rank, ranks.data_ranks)
            figures.append(take_step(engine, batch, step))
    finally:
        optimizer.orthogonalise = plain
    return figures, engine, sum(counted)


def on_rank(rank: int, names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    results = {}
    for name in names:
        world, layout, steps = LAYOUTS[name]
        ranks = Ranks.join(layout)
        figures, engine, counted = train(ranks, steps)
        (place := folder / name).mkdir(exist_ok=True)
        write_slices(place, as_slices(engine.named_state()), rank, world)
        weights = {key: value.clone() for key, value in engine.weights().items()}
        mine = engine.written_weights()
        if rank < layout.expert_parallel:
            save_part(NARROW, mine, place, ranks.expert_share)
        else:
            assert not mine
        ranks.wait()
        assert same_tensors(load_model(place).state_dict(), weights)
        with SliceReader(place) as reader:
            momenta = {key: value.clone() for key, value in reader.items()}
            engine.close()
            assert same_tensors(engine.model.state_dict(), part_of(weights, NARROW, ranks.expert_share))
            engine = begin(engine.model, ranks)
            engine.load_named_state(reader)
        write_slices(place, as_slices(engine.named_state()), rank, world)
        ranks.wait()
        with SliceReader(place) as reader:
            assert same_tensors(dict(reader), momenta)
        engine.close()
        first = {"weights": weights, "momenta": momenta} if ranks.first else {}
        results[name] = {"figures": figures, "counted": counted, **first}
        results[name]["biases"] = torch.stack([router.e_score_correction_bias for router in engine.model.routers()])
    return results


@pytest.fixture(scope="module")
def alone():
    figures, engine, counted = train(Ranks(), STEPS)
    return figures, engine, counted


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LAYOUTS}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{world}")
        names = [name for name, (size, *_) in LAYOUTS.items() if size == world]
        for each in on_ranks(world, on_rank, folder, names, folder):
            for name in names:
                found[name].append(each[name])
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_curve_is_that_of_one_process(results, alone, name):
    expected, got = alone[0], results[name]
    for each in got:
        for step, figures in enumerate(each["figures"]):
            assert figures.keys() == expected[step].keys()
            for key, value in figures.items():
                bound = 1e-4 if "loss" in key else 1e-3 * (1 + abs(value))
                assert abs(value - expected[step][key]) < bound, (step, key)
        assert torch.equal(each["biases"], got[0]["biases"])
    assert expected[-1]["loss/total"] < expected[0]["loss/total"] - 0.5


def test_every_matrix_is_orthogonalised_and_an_expert_by_its_owners_alone(results, alone):
    matrices = {n: len(p) if p.ndim == 3 else 1 for n, p in alone[1].model.named_parameters() if is_muon(n, p)}
    experts = sum(count for n, count in matrices.items() if is_expert(n))
    others = sum(matrices.values()) - experts
    assert alone[2] == others + experts and experts == 2 * 8
    for name, (world, layout, _) in LAYOUTS.items():
        counted = [each["counted"] for each in results[name]]
        if layout.zero_stage:  # what is no expert's is dealt out
            divided = world * experts // layout.expert_parallel if layout.expert_parallel > 1 else experts
            assert sum(counted) == others + divided, name
        else:
            assert counted == [others + experts // layout.expert_parallel] * world, name


@pytest.mark.parametrize("name", [name for name, (*_, steps) in LAYOUTS.items() if steps == STEPS])
def test_weights_and_momenta_are_whole_when_saved(results, alone, name):
    model, expected = alone[1].model, alone[1].optimizer.named_state()
    found = results[name][0]
    assert released_tensors(found["weights"]).keys() == released_tensors(model.state_dict()).keys()
    assert {key: value.shape for key, value in found["momenta"].items()} == {k: v.shape for k, v in expected.items()}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found["weights"][key], value, atol=1e-4, rtol=0)
    for key, value in expected.items():
        torch.testing.assert_close(found["momenta"][key], value, atol=1e-4, rtol=1e-3)
