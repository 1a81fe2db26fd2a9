"""Episodes: a policy, its tools and a verifier, as one coroutine (source: K2.5 paper App. D).

Token in, token out: the ids of an episode are those of the prompt, then those that the engine sampled, then those of
the encoded tool results, and so on. Nothing is decoded and encoded again, so the stored log-probs belong to these ids.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from model.boundary.errors import MoonflowError
from model.codec.chat import AssistantTurn, Message, ToolCall, encode_turns, parse_assistant
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample, tokenize_prompt
from model.rl.rewards.verdict import SCORE
from model.rl.tools.toolset import Toolset
from model.rl.verifier import verdict
from model.rollout.protocol import Completion, Request, RolloutEngine

FAILED = "failed"
PART = "part/"
"""What the names of a score's parts begin with in ``Episode.metrics``."""

Respond = Callable[[AssistantTurn], Awaitable[list[Message]]]
Shorten = Callable[[list[int], list[bool], list[float], list[int]], None]
"""Is given the tokens, the policy mask, the log-probs and the weights' versions before each completion, and may replace
all of them in place, by others that are equally many."""


class EpisodeEnd(Exception):
    """A responder raises it to end the episode without an answer; its text is the reason, e.g. "budget"."""


@dataclass(frozen=True)
class Episode:
    """One trajectory.

    Attributes:
        input_ids: tokens of the prompt, of the policy and of the tools; media pads are expanded.
        policy_mask: True for the sampled tokens, the only ones that are trained on.
        logprobs: the sampler's log-probs (nats); 0.0 where the mask is False.
        pixel_values: float32 [P, 3, 14, 14], P patches of all media, or None.
        grid_thws: (t, h, w) of each medium, in patches.
        reward: the outcome, in [0, 1].
        response: text of the final answer; "" if there is none.
        turns: number of completions.
        finish_reason: "answer", or why there is none: "length" (a turn used all its tokens), "turns" (all turns are
            used), "context" (the episode has no tokens left), "malformed" (a media token was sampled), the reason of a
            responder, or "failed" (something broke that was not the policy's fault; the episode then has no tokens, and
            nothing is learned from it).
        correct: strict accuracy: whether the reward is full.
        metrics: figures of the environment, e.g. ``tool_calls``.
        failure: one line that says what broke in a failed episode; "" if nothing did.
        lost: one line on the first of its sub-agents that broke, which the episode survives; "" if none did.
        weight_versions: of each token, how often the engine had been given weights when it was sampled; 0 where the
            mask is False. An episode that was under way when weights changed has several. Empty if the engine does not
            count that.
        seed: from which its turns' seeds are derived.
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
    weight_versions: list[int] = field(default_factory=list)
    lost: str = ""
    seed: int = 0

    @property
    def policy_tokens(self) -> int:
        """How many tokens the policy sampled."""
        return sum(self.policy_mask)


def derive_seed(*parts: int) -> int:
    """The seed of a part (a turn, a sub-agent) of something seeded: 31 bits, a pure function of ``parts``."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


async def converse(
    engine: RolloutEngine,
    tokenizer: Tokenizer,
    prompt: TokenizedSample,
    respond: Respond,
    *,
    max_turns: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    max_tokens: int,
    thinking: bool = False,
    questions: Sequence[Message] = (),
    shorten: Shorten | None = None,
) -> Episode:
    """Alternate completions and responses until the policy answers the last question; the episode is not scored
    (reward 0).

    Args:
        prompt: ends with an open turn, in the mode that ``thinking`` says.
        respond: an assistant turn with tool calls or an error -> the turns to append (tool results, or an error).
        max_turns: completions of the episode.
        max_new_tokens: tokens of one completion.
        temperature: of sampling; 0 is greedy.
        seed: of the whole episode; each turn derives its seed from it.
        max_tokens: tokens of the whole episode, the prompt and the tools' results included.
        thinking: whether the policy writes its thinking before each answer. Without its end, a turn is malformed.
        questions: what the user says later: each answer but the last is followed by the next of these turns.
        shorten: manages the context; None: it grows until it is full.

    Raises:
        MoonflowError: the prompt leaves no room, or the engine's answer is not a valid completion.
    """
    ids = [int(token) for token in prompt.input_ids]
    mask, logprobs, versions = [False] * len(ids), [0.0] * len(ids), [0] * len(ids)
    if len(ids) >= max_tokens:
        raise MoonflowError(f"a prompt of {len(ids)} tokens leaves no room in an episode of {max_tokens}")
    response, turns, calls = "", 0, 0
    unasked, counted = list(questions), True
    opened = [tokenizer.token_id("<think>")] if thinking else []
    reason = "turns"
    while turns < max_turns:
        if shorten is not None:
            shorten(ids, mask, logprobs, versions)
            assert len(ids) == len(mask) == len(logprobs) == len(versions)
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
        if tokenizer.media_pad_id in sampled:  # it has no pixels: neither engine nor trainer can continue
            sampled = sampled[: sampled.index(tokenizer.media_pad_id)]
            reason = "malformed"
        ids += sampled
        mask += [True] * len(sampled)
        logprobs += completion.logprobs[: len(sampled)]
        counted = counted and len(completion.weight_versions) == len(completion.token_ids)
        versions += (completion.weight_versions if counted else [0] * len(sampled))[: len(sampled)]
        if len(sampled) < len(completion.token_ids):
            break
        if completion.finish_reason != "stop":
            reason = completion.finish_reason if room == max_new_tokens else "context"
            break
        turn = parse_assistant([*opened, *sampled], tokenizer)
        turn, repeats = _without_repeats(turn)
        answered = not turn.tool_calls and turn.error is None
        if answered and not unasked:
            response, reason = turn.content, "answer"
            break
        if turns == max_turns:
            break
        try:
            heard = [unasked.pop(0)] if answered else [*await respond(turn), *repeats]
            observed = encode_turns(heard, tokenizer, calls, thinking)
        except EpisodeEnd as ended:
            reason = str(ended)
            break
        calls += len(turn.tool_calls)
        ids += observed
        mask += [False] * len(observed)
        logprobs += [0.0] * len(observed)
        versions += [0] * len(observed)
    end = max((position + 1 for position, sampled_here in enumerate(mask) if sampled_here), default=len(ids))
    # An observation that the policy never read is useless.
    ids, mask, logprobs, versions = ids[:end], mask[:end], logprobs[:end], versions[:end]
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
        weight_versions=versions if counted else [],
        seed=seed,
    )


def _without_repeats(turn: AssistantTurn) -> tuple[AssistantTurn, list[Message]]:
    """The turn without calls whose id an earlier one of it has, since a result names its call, and what is said of
    them."""
    calls: dict[str, ToolCall] = {}
    for call in turn.tool_calls:
        calls.setdefault(call.id, call)
    left_out = len(turn.tool_calls) - len(calls)
    if not left_out:
        return turn, []
    told = f"error: call ids repeat, calls left out: {left_out}"
    return replace(turn, tool_calls=list(calls.values())), [{"role": "system", "content": told}]


def _usable(completion: Completion, request: Request, vocabulary: int) -> Completion:
    """The completion, checked now: a bad one would otherwise be noticed only in the middle of a training step.

    Raises:
        MoonflowError: it is aborted, too long, or its tokens or log-probs are not valid.
    """
    tokens, logprobs = completion.token_ids, completion.logprobs
    if completion.finish_reason == "abort":
        raise MoonflowError("the engine gave up the request")
    if len(tokens) > request.max_new_tokens or not all(0 <= token < vocabulary for token in tokens):
        raise MoonflowError(
            f"the engine answered with {len(tokens)} tokens, where at most {request.max_new_tokens} are allowed, or "
            f"with tokens outside 0..{vocabulary - 1}"
        )
    if len(logprobs) != len(tokens) or not all(math.isfinite(value) for value in logprobs):
        raise MoonflowError("the engine's log-probs are not finite, or not one per token")
    return completion


def complaint(turn: AssistantTurn) -> Message:
    """The message that answers a turn which could not be parsed."""
    return {"role": "system", "content": f"error: {turn.error}"}


def tool_result(call_id: str, content: str) -> Message:
    """The message that answers one tool call."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


class Tools(Protocol):
    """What runs the calls of an episode."""

    async def call(self, call: ToolCall) -> str:
        """The observation that a call gives."""
        ...


async def answer_calls(tools: Tools, turn: AssistantTurn) -> list[Message]:
    """Run the calls of a turn one after the other, in their order."""
    if turn.error is not None:
        return [complaint(turn)]
    return [tool_result(call.id, await tools.call(call)) for call in turn.tool_calls]


Scoring = Callable[[Episode, Sample, Toolset], Awaitable[Episode]]
"""(episode, task, the tools' maker) -> the episode with its reward."""


async def judged(episode: Episode, sample: Sample, toolset: Toolset) -> Episode:
    """The episode with its reward: the task's verifier judges the final answer; no answer earns 0."""
    if episode.finish_reason != "answer":
        return replace(episode, reward=0.0, correct=False)
    return with_verdict(episode, await verdict(sample, episode.response, toolset))


def with_verdict(episode: Episode, said: Mapping[str, float]) -> Episode:
    """The episode with a verdict: its ``score`` is the reward, its parts are metrics."""
    parts = {f"{PART}{name}": value for name, value in said.items() if name != SCORE}
    reward = said[SCORE]
    return replace(episode, reward=reward, correct=reward >= 1.0, metrics=episode.metrics | parts)


async def run_episode(
    engine: RolloutEngine,
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
    score: Scoring = judged,
) -> Episode:
    """Run one episode of a task and score it. It is in thinking mode if the task's reference answer thinks.

    Args:
        sample: the task.
        toolset: makes the tools that the policy may call.
        score: gives the episode its reward.
        max_turns, max_new_tokens, temperature, seed, max_tokens: as for `converse`.

    Raises:
        Exception: whatever the sample, a tool, the verifier or the engine raised; see `model.rl.failures.attempt`.
    """
    prompt = tokenize_prompt(sample, tokenizer, image_config, thinking=sample.thinks)
    async with toolset.episode(sample, image_config) as tools:
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
            thinking=sample.thinks,
            questions=sample.later_questions,
        )
    return await score(episode, sample, toolset)
