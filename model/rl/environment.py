"""Episodes: a policy, its tools and a verifier, as one coroutine (source: K2.5 paper App. D).

Token-in, token-out: an episode's ids are the prompt's, then what the engine sampled, exactly as sampled, then the
encoded tool results, and so on. Nothing is decoded and encoded again, so the stored log-probs belong to these ids.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from model.chat import AssistantTurn, encode_turns, parse_assistant
from model.data.sample import Sample
from model.data.tokenize import TokenizedSample, tokenize_prompt
from model.errors import MoonflowError
from model.image import ImageConfig
from model.rl import rewards
from model.rl.tools.toolset import EpisodeTools, Toolset
from model.rollout.protocol import Completion, Engine, Request
from model.tokenizer import Tokenizer

FAILED = "failed"

Message = Mapping[str, Any]
Respond = Callable[[AssistantTurn], Awaitable[list[Message]]]


class EpisodeEnd(Exception):
    """Raised by a responder to end the episode without an answer, e.g. ``EpisodeEnd("budget")``."""


@dataclass(frozen=True)
class Episode:
    """One trajectory.

    Attributes:
        input_ids: prompt, sampled and observed tokens, media pads expanded.
        policy_mask: True for the sampled tokens, the only ones that are trained on.
        logprobs: the sampler's own (nats); 0.0 where the mask is False.
        pixel_values: float32 [P, 3, 14, 14] or None.   grid_thws: (t, h, w) of each medium.
        reward: outcome in [0, 1].   correct: strict accuracy.   response: text of the final answer ("" without one).
        turns: number of completions.
        finish_reason: "answer", or why there is none: "length" (a turn ran out of tokens), "turns", "context" (the
            episode did), "malformed" (a media token was sampled), a responder's reason, or "failed": the episode broke,
            through no doing of the policy; it has no tokens then, and nothing is learnt from it.
        metrics: figures of the environment, e.g. ``tool_calls``.
        failure: one line on what broke in a failed episode, or in one whose sub-agent did; "" where nothing did.
    """

    input_ids: list[int]
    policy_mask: list[bool]
    logprobs: list[float]
    pixel_values: torch.Tensor | None
    grid_thws: list[tuple[int, int, int]]
    reward: float
    response: str
    turns: int
    finish_reason: str
    correct: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def policy_logprobs(self) -> list[float]:
        return [value for value, sampled in zip(self.logprobs, self.policy_mask, strict=True) if sampled]

    @property
    def policy_tokens(self) -> int:
        return sum(self.policy_mask)


def derive_seed(*parts: int) -> int:
    """A seed for a part of a seeded whole (a turn, a sub-agent): 31 bits, a pure function of ``parts``."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


async def converse(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: TokenizedSample,
    respond: Respond,
    *,
    max_turns: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    max_tokens: int,
) -> Episode:
    """Alternate completions and responses until the policy answers; the episode is not scored (reward 0).

    Args:
        respond: an assistant turn with tool calls or an error -> the turns to append (tool results, a complaint).
        max_turns: completions. max_new_tokens: per completion. max_tokens: of the whole episode, observations included.

    Raises:
        MoonflowError: the prompt leaves no room, or the engine answered with what cannot be a completion.
    """
    ids = [int(token) for token in prompt.input_ids]
    mask, logprobs = [False] * len(ids), [0.0] * len(ids)
    if len(ids) >= max_tokens:
        raise MoonflowError(f"a prompt of {len(ids)} tokens leaves no room in an episode of {max_tokens}")
    response, turns, calls = "", 0, 0
    reason = "turns"
    while turns < max_turns:
        room = min(max_new_tokens, max_tokens - len(ids))
        if room <= 0:
            reason = "context"
            break
        request = Request(
            ids[:],
            prompt.pixel_values,
            prompt.grid_thws,
            room,
            temperature,
            stop_token_ids=(tokenizer.im_end_id,),
            seed=derive_seed(seed, turns),
        )
        completion = _usable((await engine.generate([request]))[0], request, tokenizer.vocab_size)
        turns += 1
        sampled = completion.token_ids
        if tokenizer.media_pad_id in sampled:  # no pixels stand behind it: neither the engine nor the trainer can go on
            sampled = sampled[: sampled.index(tokenizer.media_pad_id)]
            reason = "malformed"
        ids += sampled
        mask += [True] * len(sampled)
        logprobs += completion.logprobs[: len(sampled)]
        if len(sampled) < len(completion.token_ids):
            break
        if completion.finish_reason != "stop":
            reason = completion.finish_reason if room == max_new_tokens else "context"
            break
        turn = parse_assistant(sampled, tokenizer)
        if len({call.id for call in turn.tool_calls}) < len(turn.tool_calls):
            turn = AssistantTurn(turn.reasoning, turn.content, error="call ids repeat")
        if not turn.tool_calls and turn.error is None:
            response, reason = turn.content, "answer"
            break
        if turns == max_turns:
            break
        try:
            observed = encode_turns(await respond(turn), tokenizer, calls)
        except EpisodeEnd as ended:
            reason = str(ended)
            break
        calls += len(turn.tool_calls)
        ids += observed
        mask += [False] * len(observed)
        logprobs += [0.0] * len(observed)
    end = max((position + 1 for position, sampled_here in enumerate(mask) if sampled_here), default=len(ids))
    ids, mask, logprobs = ids[:end], mask[:end], logprobs[:end]  # an observation nobody reads teaches nothing
    return Episode(
        ids,
        mask,
        logprobs,
        prompt.pixel_values,
        prompt.grid_thws,
        0.0,
        response,
        turns,
        reason,
        metrics={"tool_calls": float(calls)},
    )


def _usable(completion: Completion, request: Request, vocabulary: int) -> Completion:
    """The completion, if it can be trained on: a broken one would be found no sooner than in the middle of a step."""
    tokens, logprobs = completion.token_ids, completion.logprobs
    if completion.finish_reason == "abort":
        raise MoonflowError("the engine gave up the request")
    if len(tokens) > request.max_new_tokens or not all(0 <= token < vocabulary for token in tokens):
        raise MoonflowError(
            f"the engine answered with {len(tokens)} tokens, of which it may use {request.max_new_tokens}, or with "
            f"tokens outside 0..{vocabulary - 1}"
        )
    if len(logprobs) != len(tokens) or not all(math.isfinite(value) for value in logprobs):
        raise MoonflowError("the engine's log-probs are not finite, or not one to a token")
    return completion


def complaint(turn: AssistantTurn) -> Message:
    """The observation after a turn that could not be read."""
    return {"role": "system", "content": f"error: {turn.error}"}


def tool_result(call_id: str, content: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


async def answer_calls(tools: EpisodeTools, turn: AssistantTurn) -> list[Message]:
    """Run a turn's calls one after the other, as they stand."""
    if turn.error is not None:
        return [complaint(turn)]
    return [tool_result(call.id, await tools.call(call)) for call in turn.tool_calls]


async def run_episode(
    engine: Engine,
    tokenizer: Tokenizer,
    sample: Sample,
    image_config: ImageConfig,
    toolset: Toolset,
    *,
    max_turns: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    max_tokens: int = 512,
) -> Episode:
    """One scored episode of a task.

    Args:
        max_turns, max_new_tokens, max_tokens: as for `converse`.

    Raises:
        Exception: whatever the sample, a tool, the verifier or the engine raised; see `model.rl.failures.attempt`.
    """
    prompt = tokenize_prompt(sample, tokenizer, image_config)
    async with toolset.episode(sample) as tools:
        episode = await converse(
            engine,
            tokenizer,
            prompt,
            lambda turn: answer_calls(tools, turn),
            max_turns=max_turns,
            max_new_tokens=max_new_tokens,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
    return scored(episode, sample)


def scored(episode: Episode, sample: Sample) -> Episode:
    """The episode with its outcome: the sample's verifier on the final answer; no answer earns 0."""
    answered = episode.finish_reason == "answer"
    reward = rewards.score(sample.reward, episode.response, sample.answer) if answered else 0.0
    right = answered and rewards.correct(sample.reward, episode.response, sample.answer)
    return replace(episode, reward=reward, correct=right)
