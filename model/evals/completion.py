"""Documents whose end is to be completed, such as a long text that hides a number (source: ours).

They are asked as they are trained on, without a chat around them, so that a model before supervised fine-tuning can be
measured too.
"""

from __future__ import annotations

from dataclasses import replace

from model.codec.chat import AssistantTurn, Message
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_opening
from model.rl.environment import Episode, converse, judged
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import RolloutEngine

BEYOND = "beyond_context"
"""In an episode's metrics: 1.0 if its document is longer than the model's context, else 0.0."""


async def complete_document(
    engine: RolloutEngine,
    tokenizer: Tokenizer,
    sample: Sample,
    image_config: ImageConfig,
    toolset: Toolset,
    *,
    max_new_tokens: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Episode:
    """Let a model complete a document and score what it wrote.

    The answer is as many characters as the reference has: what a model writes after it, such as the document's end,
    does not count. A document that leaves no room for ``max_new_tokens`` is not shown; its episode ends with "context".

    Args:
        sample: a document with an answer (``Suite.task``).
        toolset: for the verifier.
        max_new_tokens: tokens of the completion.
        max_tokens: tokens of document and completion.
        temperature, seed: of sampling.

    Raises:
        MoonflowError: the document cannot be read, or the engine's answer is not a valid completion.
    """
    opening = tokenize_opening(sample, tokenizer, image_config)
    if len(opening.input_ids) + max_new_tokens > max_tokens:
        return Episode([], [], [], None, [], 0.0, "", 0, "context", metrics={BEYOND: 1.0})
    episode = await converse(
        engine, tokenizer, opening, _nothing, max_turns=1, max_new_tokens=max_new_tokens, temperature=temperature,
        seed=seed, max_tokens=max_tokens,
    )  # fmt: skip
    written = [token for token, own in zip(episode.input_ids, episode.policy_mask, strict=True) if own]
    response = tokenizer.decode(written)[: len(str(sample.answer))]
    ended = "answer" if response else episode.finish_reason
    ended_episode = replace(episode, response=response, finish_reason=ended, metrics={BEYOND: 0.0})
    return await judged(ended_episode, sample, toolset)


async def _nothing(turn: AssistantTurn) -> list[Message]:
    """What follows a turn: no episode of one turn asks for it."""
    return []
