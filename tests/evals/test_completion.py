"""Documents are asked as they are trained on; one that is longer than the context is counted and not shown."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.tokenize import tokenize, tokenize_opening
from model.evals.completion import BEYOND
from model.evals.drawn import drawn
from model.evals.score import Score
from model.evals.scorer import Evaluation
from model.evals.suites import SUITES
from model.network.config import preset
from model.network.initial import new_model
from model.rl.tools.toolset import Toolset
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.samples import captioned, make_sample

IMAGES = ImageConfig()
DOCUMENTS = {name: replace(suite, share=1.0) for name, suite in SUITES.items() if suite.mode == "document"}


class Continues:
    """An engine that knows how each document goes on; it writes on, as a model does, until it has no room."""

    def __init__(self, name: str, tokenizer: Tokenizer, count: int, wrong: int = -1) -> None:
        self.known: dict[tuple[object, ...], list[int]] = {}
        for number, sample in enumerate(drawn(DOCUMENTS[name], count, 0)):
            whole = tokenize(sample, tokenizer, IMAGES)
            first = int(whole.loss_mask.nonzero()[0])
            ids = whole.input_ids.tolist()
            answer = tokenizer.encode("!") if number == wrong else ids[first:]
            self.known[self.key(ids[:first], whole.pixel_values)] = (answer * 8)[: DOCUMENTS[name].max_new_tokens]

    @staticmethod
    def key(ids: list[int], pixel_values: torch.Tensor | None) -> tuple[object, ...]:
        return (*ids, None if pixel_values is None else pixel_values.numpy().tobytes())

    async def generate(self, requests: list[Request]) -> list[Completion]:
        found = [self.known[self.key(request.input_ids, request.pixel_values)] for request in requests]
        return [Completion(ids, [0.0] * len(ids), "length") for ids in found]

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError


def scored(name: str, engine: Continues | EmbeddedEngine, tokenizer: Tokenizer, count: int, context: int) -> Score:
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=0.0, seed=0)
        tasks = {name: drawn(DOCUMENTS[name], count, 0)}
        return asyncio.run(evaluation.score(engine, engine, tasks, [DOCUMENTS[name]], context))[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_who_continues_a_document_as_it_is_trained_on_scores_one(name: str, tokenizer: Tokenizer) -> None:
    score = scored(name, Continues(name, tokenizer, 6), tokenizer, 6, 4096)
    assert (score.value, score.answered, score.failed, score.figures) == (1.0, 1.0, 0, {BEYOND: 0.0})
    score = scored(name, Continues(name, tokenizer, 6, wrong=2), tokenizer, 6, 4096)
    assert (score.value, score.correct) == (5 / 6, 5)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_beyond_the_context_is_wrong_and_counted_and_the_others_are_asked(
    name: str, tokenizer: Tokenizer
) -> None:
    samples = drawn(DOCUMENTS[name], 12, 0)
    sizes = sorted(len(tokenize_opening(sample, tokenizer, IMAGES).input_ids) for sample in samples)
    context = sizes[7] + DOCUMENTS[name].max_new_tokens
    fits = sum(size <= sizes[7] for size in sizes)
    assert fits < 12
    score = scored(name, Continues(name, tokenizer, 12), tokenizer, 12, context)
    assert (score.correct, score.failed, score.n) == (fits, 0, 12)
    assert score.figures == {BEYOND: pytest.approx(1 - fits / 12)} and score.answered == score.value == fits / 12


def test_a_model_of_a_short_context_is_measured(tokenizer: Tokenizer) -> None:
    """Through the embedded engine, which refuses a prompt that does not fit."""
    tiny, context = preset("tiny"), 400
    longer = tiny.text_config.model_copy(update={"max_position_embeddings": context})
    config = tiny.model_copy(update={"text_config": longer})
    engine = EmbeddedEngine(new_model(config, seed=0).eval(), 4)
    for name in DOCUMENTS:
        score = scored(name, engine, tokenizer, 4, context)
        assert (score.n, score.failed) == (4, 0) and score.value < 1 and 0 < score.figures[BEYOND] < 1


def test_the_opening_is_what_stands_before_the_answer(tokenizer: Tokenizer) -> None:
    for name in DOCUMENTS:
        (sample, *_) = drawn(DOCUMENTS[name], 2, 0)
        whole, opening = tokenize(sample, tokenizer, IMAGES), tokenize_opening(sample, tokenizer, IMAGES)
        first = int(whole.loss_mask.nonzero()[0])
        assert opening.input_ids.tolist() == whole.input_ids[:first].tolist() and not opening.loss_mask.any()
        assert opening.grid_thws == whole.grid_thws
        assert sample.answer == sample.segments[-1]["text"] and sample.reward == "exact"
    assert tokenize_opening(captioned(), tokenizer, IMAGES, pixels=False).pixel_values is None


def test_what_is_no_document_cannot_be_completed(tokenizer: Tokenizer) -> None:
    with pytest.raises(MoonflowError, match="sample k of f: it is no document"):
        tokenize_opening(make_sample(messages=[{"role": "user", "content": "?"}]), tokenizer, IMAGES)
    broken = replace(captioned(), media={})
    with pytest.raises(MoonflowError, match="sample k of f: medium 'png'"):
        tokenize_opening(broken, tokenizer, IMAGES)
