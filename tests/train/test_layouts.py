"""Real ranks that divide experts or rows train as one process does."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import model.train.optimizer as optimizer
from model.data.packing import Batch, pack
from model.expert_parallel import gather_experts, is_expert, whole_state
from model.hf import unstacked_tensors
from model.multimodal import KimiK25
from model.train.engine import PlainEngine
from model.train.optimizer import is_muon
from model.train.phase import Phase
from model.train.ranks import Layout, Ranks
from model.train.slices import SliceReader, as_slices, write_slices
from tests.gloo import on_ranks
from tests.test_multimodal import sample
from tests.test_sequence_parallel import CONFIG

STEPS, ROWS, TOKENS = 50, 2, 32
LAYOUTS = {
    "experts": (2, Layout(expert_parallel=2)),
    "rows": (2, Layout(sequence_parallel=2)),
    "experts and rows": (4, Layout(expert_parallel=2, sequence_parallel=2)),
    "experts of all, rows of two": (4, Layout(expert_parallel=4, sequence_parallel=2)),
}


def row(step: int, number: int) -> Batch:
    """One of the global batch's rows; five batches return in turn, so that there is something to learn."""
    seed = 10 * (step % 5) + number
    members = [sample(seed, 3, (1, 4, 8), 6), sample(seed + 100, 12)] if number else [sample(seed, 9), sample(seed, 14)]
    return pack(members, CONFIG.pad_token_id, tokens_per_row=TOKENS)


def rows_of(step: int, part: int, parts: int) -> Batch:
    """What one of ``parts`` data ranks reads."""
    mine = [row(step, number) for number in range(ROWS)][part * ROWS // parts : (part + 1) * ROWS // parts]
    assert all(len(one.input_ids_BT) == 1 for one in mine)
    whole = mine[0]
    for number, one in enumerate(mine[1:], 1):
        shifted = replace(one, target_positions_N=one.target_positions_N + number * TOKENS)
        joined = {
            name: torch.cat((value, getattr(shifted, name)))
            for name, value in vars(whole).items()
            if isinstance(value, Tensor) and name != "pixel_values"
        }
        assert whole.pixel_values is None
        whole = replace(whole, **joined, pixel_values=one.pixel_values, grid_thws=one.grid_thws)
    return whole


def phase(steps: int) -> Phase:
    return Phase(lambda state: None, steps, 3e-3, warmup_steps=5)  # type: ignore[arg-type, return-value]


def train(ranks: Ranks, steps: int) -> tuple[list[dict[str, float]], PlainEngine, int]:
    """Figures of every step, the engine, and how many matrices the last step orthogonalised here."""
    counted: list[int] = []
    plain = optimizer.orthogonalise

    def counting(matrices: Tensor, *settings: Any) -> Tensor:
        counted.append(len(matrices))
        return plain(matrices, *settings)

    optimizer.orthogonalise = counting
    try:
        engine, figures = PlainEngine(KimiK25(CONFIG, seed=4).train(), phase(STEPS), ranks), []
        engine.optimizer.precision = torch.float32  # bfloat16 rounds otherwise where matrices are batched otherwise
        for step in range(steps):
            counted.clear()
            figures.append(engine.step(rows_of(step, ranks.data_rank, ranks.data_ranks), step))
    finally:
        optimizer.orthogonalise = plain
    return figures, engine, sum(counted)


def on_rank(rank: int, names: list[str], steps: int, folder) -> dict[str, dict]:
    results = {}
    for name in names:
        world, layout = LAYOUTS[name]
        os.environ["WORLD_SIZE"] = str(world)
        ranks = Ranks.join(layout)
        figures, engine, counted = train(ranks, steps)
        place = folder / name
        place.mkdir(exist_ok=True)
        write_slices(place, as_slices(engine.named_state()), rank, world)
        ranks.wait()
        state = whole_state(engine.model)
        with SliceReader(place) as reader:
            other = PlainEngine(engine.model, phase(STEPS), ranks)
            other.load_named_state(reader)
            again = other.optimizer.named_state()
            assert all(torch.equal(value, again[key]) for key, value in engine.optimizer.named_state().items())
            momenta = dict(reader) if ranks.first else {}
        biases = [router.e_score_correction_bias.detach().clone() for router in engine.model.routers()]
        gather_experts(engine.model)
        assert all(torch.equal(value, state[key]) for key, value in engine.model.state_dict().items())
        results[name] = {
            "figures": figures,
            "counted": counted,
            "biases": torch.stack(biases),
            "weights": state if ranks.first else {},
            "momenta": momenta,
        }
    return results


@pytest.fixture(scope="module")
def alone():
    figures, engine, counted = train(Ranks(), STEPS)
    return figures, engine, counted


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    by_world = {2: STEPS, 4: 5}
    found: dict[str, list[dict]] = {}
    for world, steps in by_world.items():
        names = [name for name, (size, _) in LAYOUTS.items() if size == world]
        folder = tmp_path_factory.mktemp(f"ranks{world}")
        for name in names:
            found[name] = []
        for each in on_ranks(world, on_rank, folder, names, steps, folder):
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


@pytest.mark.parametrize("name", ["experts", "experts and rows"])
def test_each_expert_is_orthogonalised_by_its_owner_alone(results, alone, name):
    matrices = {n: len(p) if p.ndim == 3 else 1 for n, p in alone[1].model.named_parameters() if is_muon(n, p)}
    experts = sum(count for n, count in matrices.items() if is_expert(n))
    assert alone[2] == sum(matrices.values()) and experts == 2 * 8
    for each in results[name]:
        assert each["counted"] == sum(matrices.values()) - experts + experts // LAYOUTS[name][1].expert_parallel


def test_weights_and_momenta_are_whole_when_saved(results, alone):
    model, expected = alone[1].model, alone[1].optimizer.named_state()
    found = results["experts"][0]
    assert unstacked_tensors(found["weights"]).keys() == unstacked_tensors(model.state_dict()).keys()
    assert {key: value.shape for key, value in found["momenta"].items()} == {k: v.shape for k, v in expected.items()}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found["weights"][key], value, atol=1e-4, rtol=0)
    for key, value in expected.items():
        torch.testing.assert_close(found["momenta"][key], value, atol=1e-4, rtol=1e-3)
