"""Requests with text and pictures, and what an embedded engine answers."""

from __future__ import annotations

import asyncio
import random

from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.drawn import PAD, pixels


def text_request(seed: int, length: int, **fields) -> Request:
    ids = random.Random(seed).choices(range(768), k=length)
    return Request(input_ids=ids, seed=seed, **fields)


def image_request(seed: int, grids: list[tuple[int, int, int]], **fields) -> Request:
    """Text, then each medium's pads, then text."""
    ids = random.Random(seed).choices(range(768), k=5)
    for _, h, w in grids:
        ids += [PAD] * (h * w // 4) + [9]
    return Request(input_ids=ids, pixel_values=pixels(grids, seed), grid_thws=grids, seed=seed, **fields)


def mixed_requests(**fields) -> list[Request]:
    lengths = random.Random(0)
    requests = [
        text_request(seed, lengths.randint(1, 90), max_new_tokens=lengths.randint(1, 40), **fields)
        for seed in range(20)
    ]
    grids = [[(1, 2, 2)], [(1, 2, 6)], [(4, 4, 4), (2, 4, 4)], [(1, 6, 8)], [(1, 2, 6)]]
    return requests + [image_request(seed, grid, max_new_tokens=12, **fields) for seed, grid in enumerate(grids, 50)]


def run(engine: EmbeddedEngine, requests: list[Request]) -> list[Completion]:
    return asyncio.run(engine.generate(requests))
