"""The serve check with SGLang's replicas: each of them must answer from the promoted weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from components.serve import replicas
from components.serve.replicas import await_replicas
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_image_config
from model.codec.chat import parse_assistant
from model.data.samples.tokenize import tokenize_prompt
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request
from tests.sglang_replica import SGLangReplica
from tests.tiny_folders import eval_samples, tiny_tokenizer

PROMOTED = "a" * 64


class Waits:
    """Progress that puts a replica right after its second look."""

    def __init__(self, replica: SGLangReplica) -> None:
        self.replica, self.looks = replica, 0

    def update(self, done: int, total: int, **figures: float) -> None:
        self.looks += 1
        if self.looks == 2:
            self.replica.version = PROMOTED


def test_the_check_waits_until_every_replica_answers_from_the_promoted_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "POLL_S", 0.01)
    sample, tokenizer, images = eval_samples("digit_string", 1)[0], tiny_tokenizer(), load_image_config(checkpoint)
    prompt = tokenize_prompt(sample, tokenizer, images)
    ids = [int(token) for token in prompt.input_ids]
    own = Request(ids, prompt.pixel_values, prompt.grid_thws, 4, temperature=0.0, stop_token_ids=(tokenizer.im_end_id,))
    with SGLangReplica(checkpoint) as one, SGLangReplica(checkpoint) as other:
        one.version, other.version = PROMOTED, "b" * 64

        def check(timeout: float, progress: Any) -> Any:
            return await_replicas(
                [one.url, other.url], sample, tokenizer, images, PROMOTED,
                max_tokens=4, timeout=timeout, progress=progress,
            )  # fmt: skip

        with pytest.raises(MoonflowError, match=f"{other.url} answers from weights bbbbbbbbbbbb"):
            check(0.05, Waits(one))
        waits = Waits(other)
        answer = check(60.0, waits)
        assert waits.looks == 2 and answer.manifest_sha256 == PROMOTED
        expected = asyncio.run(EmbeddedEngine.load(checkpoint).generate([own]))[0]
        assert answer.text == parse_assistant(expected.token_ids, tokenizer).content
        other.kill()
        with pytest.raises(MoonflowError, match="is it running"):
            check(0.05, Waits(one))
