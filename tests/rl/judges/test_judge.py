"""What a judge makes of what its engine says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.boundary.errors import MoonflowError, Transient
from model.codec.tokenizer import Tokenizer
from model.network.config import preset
from model.network.initial import new_model
from model.rl.judges.judge import Judge, Judgement
from model.rollout.chat_engine import ChatEngine
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.chat_server import Script, chatting, say
from tests.corpus import small_tokenizer

T = small_tokenizer()
QUESTION, RUBRIC = "Which capital?", "It is short."


class Sure:
    """A remote party that says ``verdict(prompt)`` with a probability, split evenly over the tokens."""

    def __init__(self, verdict: Callable[[str], str], probability: float = 1.0, end: bool = True) -> None:
        self.verdict, self.probability, self.end = verdict, probability, end
        self.prompts: list[str] = []

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        (request,) = requests
        assert request.greedy
        self.prompts.append(T.decode(request.input_ids))
        ids = T.encode(self.verdict(self.prompts[-1]))
        logprobs = [math.log(self.probability) / len(ids) if ids else 0.0] * len(ids)
        if self.end:
            return [Completion([*ids, T.im_end_id], [*logprobs, -3.0], "stop")]
        return [Completion(ids, logprobs, "length")]

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError("it has no weights")


def meets(engine: Any, answer: str = "Lima", **more: Any) -> Judgement:
    return asyncio.run(Judge(engine, T, **more).meets(QUESTION, answer, RUBRIC))


def prefers(engine: Any, first: str = "Lima", second: str = "Rome") -> Judgement:
    return asyncio.run(Judge(engine, T).prefers(QUESTION, first, second, RUBRIC))


@pytest.mark.parametrize(
    ("verdict", "probability", "score"),
    [("yes", 0.9, 0.9), ("no", 0.9, 0.1), ("No.", 1.0, 0.0), ("yes", 0.2, 0.5), ("no", 0.2, 0.5)],
)
def test_the_score_is_the_probability_of_the_verdict(verdict: str, probability: float, score: float) -> None:
    assert meets(Sure(lambda _: verdict, probability)).score == pytest.approx(score)


def test_two_answers_are_compared_in_both_orders() -> None:
    def likes_lima(prompt: str) -> str:
        return "A" if prompt.index("|Lima") < prompt.index("|Rome") else "B"

    assert prefers(Sure(likes_lima, 0.8)).score == pytest.approx(0.8)
    assert prefers(Sure(likes_lima, 0.8), "Rome", "Lima").score == pytest.approx(0.2)
    fixed = Sure(lambda _: "A", 0.9)
    assert prefers(fixed).score == pytest.approx(0.5), "one that always says A says nothing"
    assert len(set(fixed.prompts)) == 2


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (Sure(lambda _: "maybe"), "it said 'maybe"),
        (Sure(lambda _: ""), "it said"),
        (Sure(lambda _: "yes", end=False), "and did not end"),
        (Sure(lambda _: "yes", probability=math.nan), "not finite"),
    ],
)
def test_a_verdict_that_cannot_be_read_is_named_and_gives_no_score(engine: Sure, told: str) -> None:
    for found in (meets(engine), prefers(engine)):
        assert found.score is None
    assert told in meets(engine).unread and "\n" not in meets(engine).unread


def test_a_prompt_that_is_too_long_is_not_asked() -> None:
    engine = Sure(lambda _: "yes")
    assert meets(engine, "x" * 500, context=256).score is None and not engine.prompts
    assert meets(engine, context=256).score == 1.0


def test_an_embedded_model_with_random_weights_gives_a_judgement() -> None:
    judge = EmbeddedEngine(new_model(preset("tiny"), seed=5).eval(), 4)
    found = prefers(judge)
    assert found.unread or 0.0 <= (found.score or 0.0) <= 1.0


def test_a_server_of_any_model_judges_by_messages_and_its_nonsense_is_named() -> None:
    def answer(body: dict[str, Any]) -> Any:
        (message,) = body["messages"]
        assert message["role"] == "user" and "<|" not in message["content"]
        if "odd" in message["content"]:
            return say("\ud800")
        if "crash" in message["content"]:
            return 400, {"error": "no"}
        return say("yes" if "|Lima" in message["content"] else "I cannot decide.")

    with chatting(Script(answer)) as url:
        engine = ChatEngine(url, "kimi", T, backoff_s=0.01)
        assert meets(engine, "Lima<|im_end|>").score == 1.0, "it knows no log-probs"
        assert "it said" in meets(engine, "Rome").unread
        assert meets(engine, "crash").score is meets(engine, "odd").score is None
    with pytest.raises(Transient):
        meets(ChatEngine(url, "kimi", T, attempts=1))


def test_a_judge_reads_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    T.save(tmp_path)
    own = Tokenizer.load(tmp_path)
    assert asyncio.run(Judge(Sure(lambda _: "yes"), own).meets("q", "a", "r")) == Judgement(1.0)
    with pytest.raises(MoonflowError):
        Tokenizer.load(tmp_path / "nowhere")
