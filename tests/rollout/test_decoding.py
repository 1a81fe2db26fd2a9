"""Prompts and decode steps over a cache: kernels against torch's operators in float64, and the same bits whatever the
threads, the batch, and the pieces in which tokens are read."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.row_threads import RowThreads
from model.rollout.decoding import LatentCache, Reader, Unread, decode
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.configs import changed
from tests.drawn import PAD, pixels
from tests.torch_threads import torch_threads

ROOT = Path(__file__).parents[2]
TINY: dict[str, int] = {}
# Sizes that are no multiple of what the kernels take at a time; one expert more than there are rows.
ODD = {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 21,
    "q_lora_rank": 19,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "hidden_size": 33,
    "moe_intermediate_size": 13,
    "intermediate_size": 35,
    "n_routed_experts": 9,
    "num_experts_per_tok": 3,
    "vocab_size": 1025,
}
LENGTHS = [0, 1, 30, 31, 32, 77, 5, 64]


def case(sizes: dict[str, int], seed: int = 3) -> tuple[KimiK25, LatentCache]:
    """A model whose logits differ, and latents as if ``LENGTHS`` tokens had been read."""
    width = sizes.get("hidden_size", preset("tiny").text_config.hidden_size)
    model = new_model(changed(preset("tiny"), sizes, {"text_hidden_size": width}), seed=seed).eval()
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(2.5 if parameter.dim() > 1 else 1.0)
    cache = LatentCache(model, len(LENGTHS))
    cache.reserve(max(LENGTHS) + 1)
    cache.latents.normal_(generator=torch.Generator().manual_seed(seed))
    return model, cache


def step(model: KimiK25, latents: torch.Tensor, rows: list[int], threads: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of these rows of the batch, and their cache."""
    cache = LatentCache(model, len(rows))
    cache.reserve(latents.shape[3])
    cache.latents[:, : len(rows)] = latents[:, rows]
    pool = RowThreads(threads)
    logits = Reader(model, None).step(cache, [7 * row for row in rows], [LENGTHS[row] for row in rows], pool)
    pool.close()
    return logits, cache.latents[:, : len(rows)]


@pytest.mark.parametrize("sizes", [TINY, ODD], ids=["tiny", "odd"])
@torch.inference_mode()
def test_a_step_of_the_kernels_is_that_of_torch_in_float64(sizes: dict[str, int]) -> None:
    model, cache = case(sizes)
    rows = list(range(len(LENGTHS)))
    logits_BV, latents = step(model, cache.latents, rows)
    wide = copy.deepcopy(model).double()
    cache.latents = cache.latents.double()
    expected_BV = decode(wide, cache, [7 * row for row in rows], LENGTHS)
    assert expected_BV.std() > 0.5
    torch.testing.assert_close(logits_BV, expected_BV, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents, cache.latents[:, :-1].float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [TINY, ODD], ids=["tiny", "odd"])
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_place_of_any_batch_on_any_threads(sizes: dict[str, int]) -> None:
    model, cache = case(sizes)
    alone = [step(model, cache.latents, [row]) for row in range(len(LENGTHS))]
    for seed in range(4):
        order = random.Random(seed).sample(range(len(LENGTHS)), len(LENGTHS) - seed)
        logits_BV, latents = step(model, cache.latents, order, threads=1 + seed)
        for place, row in enumerate(order):
            assert torch.equal(logits_BV[place], alone[row][0][0])
            assert torch.equal(latents[:, place], alone[row][1][:, 0])


def prompts(sizes: dict[str, int]) -> list[Request]:
    """Prompts of all lengths around a piece of the kernels; two have media."""
    ids = [random.Random(length).choices(range(700), k=length) for length in (1, 3, 31, 70, 257, 300)]
    requests = [Request(each) for each in ids]
    if not sizes:
        grids = [(1, 2, 2), (4, 4, 6)]
        media = [PAD, 7, *[PAD] * 6]
        requests += [Request([5, *media, *tail], pixels(grids), grids) for tail in ([9, 8], [*range(40)])]
    return requests


def read(
    model: KimiK25, requests: list[Request], cuts: list[list[int]], prompt_products: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after the prompts, and their cache, if each is read in pieces that end at its ``cuts`` and its end."""
    cache, pool = LatentCache(model, len(requests)), RowThreads(2)
    cache.reserve(max(len(request.input_ids) for request in requests))
    reader = Reader(model, prompt_products)
    starts, logits_BV = [0] * len(requests), torch.empty(0)
    for number in range(1 + max(map(len, cuts))):
        ends = [(cut[number:] or [len(request.input_ids)])[0] for cut, request in zip(cuts, requests, strict=True)]
        places = zip(requests, starts, ends, strict=True)
        pieces = [Unread(up_to(each, end), row, start) for row, (each, start, end) in enumerate(places) if start < end]
        after = reader.read(cache, pieces, pool)
        logits_BV = logits_BV if number else torch.zeros(len(requests), after.shape[1])
        logits_BV[[piece.row for piece in pieces]] = after
        starts = ends
    pool.close()
    return logits_BV, cache.latents[:, :-1]


def up_to(request: Request, end: int) -> Request:
    """The beginning of a prompt, with the media in it."""
    ids = request.input_ids[:end]
    if request.pixel_values is None:
        return Request(ids)
    grids = [grid for grid, pads in zip(request.grid_thws, (1, 7), strict=True) if ids.count(PAD) >= pads]
    patches = sum(t * h * w for t, h, w in grids)
    return Request(ids, request.pixel_values[:patches] if grids else None, grids)


def drawn_cuts(requests: list[Request], seed: int) -> list[list[int]]:
    """Random places, but none inside a medium."""
    draw = random.Random(seed)
    places = [[n for n in range(1, len(request.input_ids)) if request.input_ids[n - 1 : n + 1] != [PAD, PAD]]
              for request in requests]  # fmt: skip
    return [sorted(draw.sample(each, min(len(each), draw.choice([0, 1, 2, 5])))) for each in places]


@pytest.mark.parametrize("sizes", [TINY, ODD], ids=["tiny", "odd"])
@torch.inference_mode()
def test_a_prompt_leaves_the_same_bits_in_whatever_pieces_it_is_read(sizes: dict[str, int]) -> None:
    model, _ = case(sizes)
    requests = prompts(sizes)
    with torch_threads(1):
        whole = read(model, requests, [[]] * len(requests))
        assert whole[0].std() > 0.5
        for seed in range(4):
            logits_BV, latents = read(model, requests, drawn_cuts(requests, seed))
            assert torch.equal(logits_BV, whole[0]) and torch.equal(latents, whole[1])


@torch.inference_mode()
def test_a_token_has_the_same_bits_from_a_prompt_and_from_a_decode_step() -> None:
    model, _ = case(TINY)
    ids, pool = random.Random(0).choices(range(768), k=90), RowThreads(1)
    with torch_threads(1):
        whole = read(model, [Request(ids)], [[]])
        cache = LatentCache(model, 1)
        cache.reserve(len(ids))
        reader = Reader(model, None)
        steps = [reader.step(cache, [token], [place], pool) for place, token in enumerate(ids)]
    assert torch.equal(steps[-1], whole[0]) and torch.equal(cache.latents[:, :1], whole[1])


@pytest.mark.parametrize("products", [None, torch.float32])
@torch.inference_mode()
def test_torch_reads_the_same_prompts_in_pieces(products: torch.dtype | None) -> None:
    model, _ = case(TINY)
    requests = prompts(TINY)
    exact = read(model, requests, [[]] * len(requests))
    peer = model
    if products is None:  # in float64 the whole model is torch's; given a dtype of products, prompts are
        peer = copy.deepcopy(model).double()
        requests = [replace(each, pixel_values=each.pixel_values.double()) if each.grid_thws else each
                    for each in requests]  # fmt: skip
    for cuts in ([[]] * len(requests), drawn_cuts(requests, 1)):
        for ours, theirs in zip(exact, read(peer, requests, cuts, products), strict=True):
            torch.testing.assert_close(theirs.float(), ours, atol=2e-4, rtol=2e-4)


def completions(engine: EmbeddedEngine, threads: int = 1) -> list[Completion]:
    prompts = [random.Random(seed).choices(range(768), k=5 + 11 * seed) for seed in range(9)]
    requests = [Request(prompt, max_new_tokens=9, seed=seed) for seed, prompt in enumerate(prompts)]
    with torch_threads(threads):
        made = asyncio.run(engine.generate(requests))
        assert torch.get_num_threads() == threads
    return made


def test_completions_are_the_same_bits_on_any_number_of_threads(tiny_model: KimiK25) -> None:
    engine = EmbeddedEngine(tiny_model, max_batch=6)
    assert completions(engine) == completions(engine, threads=2) == completions(engine, threads=3)


def test_weights_in_other_tensors_are_seen_by_the_next_generation() -> None:
    model = new_model(preset("tiny"), seed=5)
    engine = EmbeddedEngine(model)
    before = completions(engine)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.data = parameter * 1.5
    assert before != completions(engine) == completions(EmbeddedEngine(model))


def test_other_dtypes_are_decoded_by_torch(tiny_model: KimiK25) -> None:
    wide = completions(EmbeddedEngine(copy.deepcopy(tiny_model).double()))
    for ours, theirs in zip(completions(EmbeddedEngine(tiny_model)), wide, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


COMPLETIONS = """
import asyncio, torch
from model.network.config import preset
from model.network.initial import new_model
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request
torch.set_num_threads(1)
prompts = [[(7 * n + i) % 768 for i in range(20 + 30 * n)] for n in range(6)]
requests = [Request(ids, max_new_tokens=30, temperature=1.0, seed=n) for n, ids in enumerate(prompts)]
done = asyncio.run(EmbeddedEngine(new_model(preset("tiny"), seed=7), 6).generate(requests))
print([(one.token_ids, one.logprobs) for one in done])
"""


@pytest.mark.slow
def test_kernels_compiled_now_and_kernels_compiled_before_give_the_same_bits(tmp_path: Path) -> None:
    """A resumed run loads what the killed one compiled."""

    def completions() -> str:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", COMPLETIONS], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert not list(tmp_path.iterdir())
    compiled = completions()
    assert list(tmp_path.rglob("*.nbc"))
    assert completions() == compiled
