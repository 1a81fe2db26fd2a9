"""The protocol of rollouts (source: ours): token ids in, token ids and log-probs out, from whatever engine samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

# A lower temperature is greedy: logits that differ at all are then decided, and dividing them by a smaller number would
# exceed float32 (source: the samplers of vLLM and SGLang have 1e-5 and 1e-6 here).
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Request:
    """One prompt and how to complete it.

    Attributes:
        input_ids: tokens of the prompt, with h/2 * w/2 media pads for every image or video chunk.
        pixel_values: float32 [P, 3, 14, 14], the P patches of all media in order; or None.
        grid_thws: (t, h, w) in patches of each medium, in order.
        max_new_tokens: generation stops after this many tokens (``finish_reason`` "length").
        temperature: of sampling; below GREEDY_BELOW, e.g. 0, decoding is greedy.
        top_p: sample from the fewest most likely tokens that together have this probability; 1 means all tokens.
        stop_token_ids: generation stops with one of these, which is part of the completion ("stop").
        seed: of sampling. The completion depends on weights and request alone, whatever else is in the batch.
    """

    input_ids: list[int]
    pixel_values: torch.Tensor | None = None
    grid_thws: list[tuple[int, int, int]] = field(default_factory=list)
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Completion:
    """What was sampled.

    Attributes:
        token_ids: the sampled tokens.
        logprobs: the sampler's log-prob of each of them (nats).
        finish_reason: "stop" and "length" as in `Request`; "abort": the engine gave the request up.
        weights: the version of the weights that sampled them, as a remote engine names it; "" if it does not.
        weight_versions: of each token, how often the engine had been given weights when it was sampled; none if the
            engine does not count that. It does not tell completions apart: the same may be sampled from both weights.
        waited_s: seconds that the request waited in the engine before it was begun; nor does this tell them apart.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length", "abort"]
    weights: str = ""
    weight_versions: list[int] = field(default_factory=list, compare=False)
    waited_s: float = field(default=0.0, compare=False)


class RolloutEngine(Protocol):
    """What completes requests. Concurrent callers share one batch; each waits only for its own requests.

    An engine that is given weights while requests are under way may sample the rest of a completion from the new ones:
    every token keeps the log-prob that it was sampled with.
    """

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of ``requests``, in their order."""
        ...

    async def update_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint folder; later requests are completed with them."""
        ...
