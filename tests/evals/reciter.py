"""An engine that knows the reference answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize
from model.rollout.protocol import Completion, Request


def key_of(ids: list[int], pixel_values: torch.Tensor | None) -> tuple[object, ...]:
    return tuple(ids), None if pixel_values is None else pixel_values.numpy().tobytes()


class Reciter:
    """An engine that knows the references: answers each prompt with the tokens it was taught."""

    def __init__(self) -> None:
        self.known: dict[tuple[object, ...], list[int]] = {}

    async def generate(self, requests: list[Request]) -> list[Completion]:
        await asyncio.sleep(0)
        found = [self.known.get(key_of(request.input_ids, request.pixel_values), []) for request in requests]
        assert all(len(ids) <= request.max_new_tokens for ids, request in zip(found, requests, strict=True)), (
            "limit too tight"
        )
        return [Completion(ids, [0.0] * len(ids), "stop" if ids else "length") for ids in found]

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError


def teach(engine: Reciter, sample: Sample, tokenizer: Tokenizer) -> None:
    """Each run of loss tokens is a completion of what stands before it."""
    whole = tokenize(sample, tokenizer, ImageConfig())
    ids, loss = whole.input_ids.tolist(), whole.loss_mask.tolist()
    start = 0
    for position in range(1, len(ids) + 1):
        ends = position == len(ids) or not loss[position]
        if loss[position - 1] and ends:
            start = max(i for i in range(position) if not loss[i]) + 1
            engine.known[key_of(ids[:start], whole.pixel_values)] = ids[start:position]
