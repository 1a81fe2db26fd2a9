"""A generation that a server broke off, to be continued there or elsewhere (source: ours; partial rollouts are those of
the K2.5 paper, App. D)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from model.rollout.protocol import Completion


class Partial:
    """What has been sampled of one request, by one set of weights or by several.

    Tokens keep the log-probs of the weights that sampled them. Each part has a seed of its own, since a server begins
    every request with the first of its random numbers.
    """

    def __init__(self, body: Mapping[str, Any], media_pad_id: int) -> None:
        """
        Args:
            body: the whole request, from ``SGLangEngine.body``.
            media_pad_id: a token after which nothing can be continued, since it has no picture.
        """
        self._body, self._media_pad_id = body, media_pad_id
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []

    @property
    def body(self) -> Mapping[str, Any]:
        """The request for what is missing."""
        if not self._tokens:
            return self._body
        sampling, done = self._body["sampling_params"], len(self._tokens)
        seed = int(np.random.SeedSequence((sampling["sampling_seed"], done)).generate_state(1)[0] >> 1)
        rest = {"max_new_tokens": sampling["max_new_tokens"] - done, "sampling_seed": seed}
        ids = [*self._body["input_ids"], *self._tokens]
        return {**self._body, "input_ids": ids, "sampling_params": {**sampling, **rest}}

    def add(self, part: Completion, version: int) -> Completion | None:
        """The whole completion, if ``part`` ends it; ``version`` is that of its weights (``weight_versions``)."""
        self._tokens += part.token_ids
        self._logprobs += part.logprobs
        self._versions += [version] * len(part.token_ids)
        reason: Literal["stop", "length", "abort"] = part.finish_reason
        if reason == "abort":
            sampling = self._body["sampling_params"]
            full = len(self._tokens) >= sampling["max_new_tokens"]
            # SGLang appends a token, then looks for an abort, and only then whether the token ends the request.
            if part.token_ids and part.token_ids[-1] in sampling["stop_token_ids"]:
                reason = "stop"
            elif full or self._media_pad_id in part.token_ids:
                reason = "length"
            else:
                return None
        return Completion(self._tokens, self._logprobs, reason, part.weights, self._versions)
