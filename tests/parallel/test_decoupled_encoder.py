"""Vision balanced over ranks gives the gradients of vision where the images are; two real ranks over gloo."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch
from model.network.forward_context import PLAIN, ForwardContext
from model.network.multimodal import KimiK25
from model.parallel.decoupled_encoder import DecoupledEncoder, assign_media, encoding_cost
from model.parallel.ranks import Layout, Ranks
from model.plan.flops import vision_forward
from tests.drawn import noisy_model, sample
from tests.gloo import on_ranks
from tests.training import gradients, let_learn
from tests.two_layers import CONFIG

TOKENS = 24


TEXT = [sample(1, 20), sample(2, 17)]
# What each rank's rows hold.
CASES: dict[str, list[list[TokenizedSample]]] = {
    "all on the first rank": [
        [
            sample(3, 2, (1, 4, 6), 5, (1, 2, 2), 2),
            sample(4, 2, (1, 4, 4), 3, (1, 6, 4), 1),
            sample(5, 9, (1, 4, 4), 2),
        ],
        TEXT,
    ],
    "unequal, with a video": [
        [sample(6, 3, (1, 4, 4), 4)],
        [sample(7, 1, (4, 4, 4), 2, (3, 4, 4), 3), sample(8, 4, (1, 8, 6), 2), sample(9, 12)],
    ],
    "one image": [TEXT, [sample(10, 4, (1, 4, 4), 5)]],
    "no image": [TEXT, [sample(11, 13)]],
    "an image that no target sees": [[sample(12, 6, (1, 4, 4))], [sample(13, 5, (1, 4, 6), 3)]],
}
LEARNING = {"everything": (), "projector": ("language_model", "mm_projector"), "backbone": ("language_model",)}


def batch_of(case: str, rank: int) -> Batch:
    return pack(CASES[case][rank], CONFIG.pad_token_id, tokens_per_row=TOKENS)


@functools.cache
def whole_model() -> KimiK25:
    return noisy_model(CONFIG, 0.08)


def make(part: str) -> KimiK25:
    """The same model each time, without gradients."""
    model = whole_model()
    model.zero_grad()
    return let_learn(model, *LEARNING[part])


def share_of_loss(
    model: KimiK25,
    batch: Batch,
    targets: int,
    features_MD: Tensor | None = None,
    context: ForwardContext = PLAIN,
) -> Tensor:
    return -model.logprobs(batch, features_MD, context).sum() / targets


@contextmanager
def encoded_patches(model: KimiK25) -> Iterator[list[tuple[int, bool]]]:
    """Patches of each call of the vision tower, and whether it kept what a backward needs."""
    calls: list[tuple[int, bool]] = []
    hook = model.vision_tower.register_forward_hook(
        lambda _, given, out: calls.append((len(given[0]), out.requires_grad))
    )
    yield calls
    hook.remove()


def on_rank(rank: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Every case under every choice of what learns."""
    ranks = Ranks(rank, 2, everyone=dist.group.WORLD)
    results = {}
    for learning, case in itertools.product(LEARNING, CASES):
        model, batch = make(learning), batch_of(case, rank)
        targets = sum(len(batch_of(case, other).targets_N) for other in range(2))
        encoder = DecoupledEncoder(model, ranks)
        with encoded_patches(model) as calls:
            features_MD = encoder.forward(batch)
            share_of_loss(model, batch, targets, features_MD).backward()
            encoder.backward()
        collects = features_MD is not None and features_MD.requires_grad
        results[learning, case] = {"gradients": gradients(model), "calls": calls, "collects": collects}
    # Features travel in the precision of products.
    model, batch = make("everything"), batch_of("unequal, with a video", rank)
    targets = sum(len(batch_of("unequal, with a video", other).targets_N) for other in range(2))
    encoder = DecoupledEncoder(model, ranks)
    features_MD = encoder.forward(batch, torch.bfloat16)
    share_of_loss(model, batch, targets, features_MD, ForwardContext(torch.bfloat16)).backward()
    encoder.backward()
    results["everything", "bfloat16"] = {"gradients": gradients(model), "dtype": str(features_MD.dtype)}
    # The same row on both ranks, each with the loss of one half of it.
    model, batch = make("everything"), batch_of("unequal, with a video", 1)
    encoder = DecoupledEncoder(model, Ranks(rank, 2, Layout(sequence_parallel=2), dist.group.WORLD))
    with encoded_patches(model) as calls:
        features_MD = encoder.forward(batch)
        half_N = batch.target_positions_N % 2 == rank
        (-model.logprobs(batch, features_MD)[half_N].sum() / len(batch.targets_N)).backward()
        encoder.backward()
    results["everything", "one row"] = {"gradients": gradients(model), "calls": calls}
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(what learns, case) -> what came out on both ranks."""
    return on_ranks(2, on_rank, tmp_path_factory.mktemp("ranks"))


def naive(learning: str, batches: list[Batch], context: ForwardContext = PLAIN) -> dict[str, Tensor]:
    """Every rank encodes its own images, autograd through: the sum over the ranks."""
    targets, model = sum(len(batch.targets_N) for batch in batches), make(learning)
    for batch in batches:
        share_of_loss(model, batch, targets, context=context).backward()
    return gradients(model)


def assert_same_gradients(got: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        summed = sum(part.get(name, torch.zeros_like(gradient)) for part in got)
        scale = max(1.0, float(gradient.abs().max()))
        assert float((summed - gradient).abs().max()) <= 1e-5 * scale, name
    assert set(expected) >= set().union(*got)


@pytest.mark.parametrize(("learning", "case"), list(itertools.product(LEARNING, CASES)))
def test_the_gradients_are_those_of_encoding_in_place(results, learning, case):
    expected = naive(learning, [batch_of(case, rank) for rank in range(2)])
    of_vision = [name for name in expected if not name.startswith("language_model")]
    if learning == "everything" and case != "no image":
        assert all(float(expected[name].abs().max()) > 1e-6 for name in of_vision if "weight" in name)
    assert_same_gradients([result[learning, case]["gradients"] for result in results], expected)


def test_in_bfloat16_products_too(results):
    got = [result["everything", "bfloat16"] for result in results]
    assert [one["dtype"] for one in got] == ["torch.bfloat16"] * 2
    batches = [batch_of("unequal, with a video", rank) for rank in range(2)]
    expected = naive("everything", batches, ForwardContext(torch.bfloat16))
    for name, gradient in expected.items():
        if not name.startswith("language_model"):
            summed = sum(one["gradients"][name] for one in got)
            assert float((summed - gradient).norm()) <= 0.03 * float(gradient.norm()), name


def test_ranks_that_share_a_row_add_up(results):
    got = [result["everything", "one row"] for result in results]
    assert_same_gradients(
        [one["gradients"] for one in got], naive("everything", [batch_of("unequal, with a video", 1)])
    )
    patches = [sum(count for count, _ in one["calls"]) for one in got]
    assert sum(patches) == 2 * batch_of("unequal, with a video", 1).pixel_values.shape[0]  # forward twice, no copies


@pytest.mark.parametrize("case", CASES)
def test_the_forward_keeps_nothing_and_only_what_learns_is_encoded_again(results, case):
    media = any(len(batch_of(case, rank).grid_thws) for rank in range(2))
    for learning, result in itertools.product(LEARNING, results):
        got = result[learning, case]
        kept = [keeps for _, keeps in got["calls"]]
        if not media:
            assert kept == [] and not got["collects"]
        else:
            assert kept == ([False, True] if learning == "everything" else [False])
            assert got["collects"] == (learning != "backbone")
        of_vision = {name for name in got["gradients"] if not name.startswith("language_model")}
        # All ranks or none have a gradient: what reduces gradients on the way waits for nobody.
        expected = {name for name, p in make(learning).named_parameters() if p.requires_grad} if media else set()
        assert of_vision == {name for name in expected if not name.startswith("language_model")}


def test_the_patches_are_shared_out(results):
    for case in ("all on the first rank", "unequal, with a video"):
        patches = [result["everything", case]["calls"][0][0] for result in results]
        whole = [batch_of(case, rank).pixel_values for rank in range(2)]
        assert sum(patches) == sum(len(pixels) for pixels in whole if pixels is not None)
        assert max(patches) < 0.65 * sum(patches)


def test_one_rank_encodes_for_itself():
    model, batch = make("everything"), batch_of("unequal, with a video", 1)
    encoder = DecoupledEncoder(model, Ranks())
    with encoded_patches(model) as calls:
        assert encoder.forward(batch) is None
        encoder.backward()
    assert calls == []


# Placement


def loads(media, ranks: int) -> list[int]:
    return [sum(encoding_cost(CONFIG, m.grid) for m in media if m.encoder == rank) for rank in range(ranks)]


def test_costs_count_attention_and_the_frames_of_a_video():
    assert encoding_cost(CONFIG, (1, 8, 8)) == vision_forward(CONFIG, 64)
    one, long, video = (encoding_cost(CONFIG, grid) for grid in ((1, 8, 8), (1, 32, 8), (4, 8, 8)))
    assert long > 4 * one  # attention grows with the square
    assert 4 * one < video < long  # one chunk attends as a whole, and its frames are pooled before the projector


def test_every_medium_has_a_place_and_loads_are_even():
    draw = torch.Generator().manual_seed(0)
    for ranks in (2, 3, 8):
        sides = [2 * torch.randint(1, 12, (int(n), 2), generator=draw) for n in torch.randint(0, 30, (ranks,))]
        sides[0] = 2 * torch.randint(1, 12, (60, 2), generator=draw)
        grids = [[(1, int(h), int(w)) for h, w in part.tolist()] for part in sides]
        media = assign_media(grids, CONFIG)
        assert sorted((m.part, m.number, m.grid) for m in media) == [
            (part, number, grid) for part, held in enumerate(grids) for number, grid in enumerate(held)
        ]
        load = loads(media, ranks)
        ideal = max(sum(load) / ranks, max(encoding_cost(CONFIG, m.grid) for m in media))
        assert max(load) <= 4 / 3 * ideal  # Graham's bound
        assert max(load) - min(load) <= max(encoding_cost(CONFIG, m.grid) for m in media)


def test_balanced_parts_stay_where_they_are():
    media = assign_media([[(1, 4, 4)] * 3, [(1, 4, 4)] * 3, [(1, 4, 4)] * 3], CONFIG)
    assert all(medium.encoder == medium.part == medium.source for medium in media)
    shared = assign_media([[(1, 4, 4)] * 4, [(1, 4, 4)] * 4], CONFIG, sharing=2)
    assert all(medium.encoder // 2 == medium.source // 2 == medium.part for medium in shared)
    assert loads(shared, 4) == [2 * encoding_cost(CONFIG, (1, 4, 4))] * 4
