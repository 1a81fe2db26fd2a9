"""The one protocol between a policy and whatever samples from it: token ids in, token ids and log-probs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

# Colder than this is greedy: logits that differ at all are then decided, and division by a smaller number leaves what
# float32 can hold (source: vLLM's and SGLang's samplers draw the line at 1e-5 and 1e-6).
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        input_ids: prompt tokens; every image or video chunk already expanded to its h/2 * w/2 media pads.
        pixel_values: float32 [patches, 3, 14, 14] of all media in order, or None.
        grid_thws: (t, h, w) in patches of each medium, in order.
        max_new_tokens: generation stops after so many tokens (``finish_reason`` "length").
        temperature: below GREEDY_BELOW, as 0, it is greedy.
        stop_token_ids: the token that stops is included in the completion.
        seed: the completion is a function of (weights, request) alone, whatever else shares the batch.
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
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Completion:
    """What was sampled: ``token_ids`` and, of the same length, the sampler's own ``logprobs`` (nats)."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length", "abort"]


class Engine(Protocol):
    """Concurrent callers share one batch; each awaits only its own requests."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]: ...

    async def update_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint folder (config.json + model.safetensors)."""
        ...
