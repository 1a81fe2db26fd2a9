"""A pool of replicas, what it is asked, and what the embedded engine answers to that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.load import load_model
from model.codec.image import ImageConfig
from model.network.config import preset
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from model.rollout.sglang_pool import SGLangPool
from tests.sglang_replica import SGLangReplica

PAD = preset("tiny").media_placeholder_token_id
SOON = {"backoff_s": 0.01, "probe_s": 0.05, "health_s": 10.0, "patience_s": 20.0}


def pool(replicas: list[SGLangReplica], **settings: Any) -> SGLangPool:
    return SGLangPool([replica.url for replica in replicas], PAD, ImageConfig(), **{**SOON, **settings})


def asked(count: int, tokens: int = 12) -> list[Request]:
    return [Request([5, 6, 7 + n % 50, 8], max_new_tokens=tokens, seed=100 + n) for n in range(count)]


def own(folder: Path, requests: list[Request]) -> list[Completion]:
    return asyncio.run(EmbeddedEngine(load_model(folder)).generate(requests))


def same(found: list[Completion], expected: list[Completion]) -> bool:
    """The same tokens and the same log-probs, bit for bit."""
    return [replace(completion, weights="") for completion in found] == expected


async def pushed_meanwhile(
    engine: SGLangPool, folders: list[Path], requests: list[Request], ready: Callable[[], bool]
) -> list[Completion]:
    """Completions during which, once ``ready``, the weights of the second folder are replaced by those of the third."""
    await engine.update_weights(folders[1])
    playing = asyncio.create_task(engine.generate(requests))
    while not ready():
        await asyncio.sleep(0.001)
    await engine.update_weights(folders[2])
    return await playing
