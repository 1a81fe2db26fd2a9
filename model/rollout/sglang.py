"""The same protocol over SGLang's native HTTP API: POST /generate with token ids (source: SGLang 0.5.23 io_struct.py).

SGLang expands one ``<|media_pad|>`` per image itself and preprocesses the image itself. So runs of pads are folded to
one, and the pixels go as the lossless PNG that the patches were cut from, which its processor cuts into the same ones.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from model.errors import MoonflowError, Transient
from model.image import ImageConfig, encode_png
from model.rollout.protocol import Completion, Request
from model.vision import GridTHW, media_tokens

RETRIED = {408, 425, 429, 500, 502, 503, 504}


class SGLangEngine:
    """``model.rollout.protocol.Engine`` on a remote SGLang.

    Its log-probs are, like the embedded engine's, those at the sampling temperature before top-p. ``seed`` is sent as
    ``sampling_seed``, which SGLang follows when it runs with ``--enable-deterministic-inference``. A request that names
    stop tokens also ends, with "stop", at the checkpoint's own end tokens: SGLang heeds both or neither.

    Where weights are updated, run SGLang with ``SGLANG_VLM_CACHE_SIZE_MB=0``: 0.5.23 keeps the features of images over
    an update, flushed or not, and would see a known image with the old weights.
    """

    def __init__(
        self,
        url: str,
        media_pad_id: int,
        image_config: ImageConfig | None = None,
        attempts: int = 4,
        backoff_s: float = 0.5,
        timeout_s: float = 600.0,
    ) -> None:
        """
        Args:
            url: base URL, e.g. ``http://rollout:30000``.
            media_pad_id: the tokenizer's ``<|media_pad|>``.
            image_config: the checkpoint's ``media_proc_cfg``; the released values by default.
            attempts: tries of one call when the host is unreachable, overloaded or failing (5xx).
            backoff_s: seconds before the second try; doubled for each further one.
            timeout_s: seconds one try may take.
        """
        self._url = url.rstrip("/")
        self._media_pad_id = media_pad_id
        self._image_config = image_config or ImageConfig()
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._timeout = httpx.Timeout(timeout_s, connect=10.0)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions of ``requests``, in their order; a cancelled call closes its connections, which aborts it there.

        Raises:
            Transient: SGLang is unreachable.
            MoonflowError: it refuses the request or answers without log-probs; videos, which it does not take for this
                model.
        """
        bodies = [self._body(request) for request in requests]
        async with self._client() as client:
            calls = [asyncio.create_task(self._call(client, "/generate", body)) for body in bodies]
            try:
                answers = await asyncio.gather(*calls)
            finally:
                for call in calls:
                    call.cancel()
        return [self._completion(answer) for answer in answers]

    async def update_weights(self, checkpoint: Path) -> None:
        """Load a checkpoint folder that SGLang's host sees under the same path; its prefix cache is flushed.

        Raises:
            MoonflowError: SGLang is unreachable or cannot load the folder.
        """
        body = {"model_path": str(checkpoint), "flush_cache": True}
        async with self._client() as client:
            answer = await self._call(client, "/update_weights_from_disk", body)
        if not answer.get("success"):
            reason = answer.get("message", "no reason given")
            raise MoonflowError(f"SGLang at {self._url} did not load {checkpoint}: {reason}")

    async def wait_until_healthy(self, timeout_s: float = 300.0) -> None:
        """Return when ``/health`` answers 200; raises MoonflowError when it has not within ``timeout_s`` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with self._client() as client:
            while asyncio.get_running_loop().time() < deadline:
                try:
                    if (await client.get("/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(self._backoff_s)
        raise MoonflowError(f"SGLang at {self._url} was not healthy within {timeout_s:.0f} s; look at its log")

    def _client(self) -> httpx.AsyncClient:
        unlimited = httpx.Limits(max_connections=None)  # SGLang does the queueing
        return httpx.AsyncClient(base_url=self._url, timeout=self._timeout, limits=unlimited)

    async def _call(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
        failure, reached = "", False
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
            try:
                response = await client.post(path, json=body)
            except httpx.TransportError as error:
                failure = f"{type(error).__name__} {error}".strip()
                # Else it may be this request that it does not get done.
                reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                continue
            reached = True
            if response.status_code in RETRIED:
                failure = f"HTTP {response.status_code} {response.text[:200]}"
                continue
            try:
                answer = response.json()
            except ValueError:
                answer = None
            if response.status_code >= 400 or not isinstance(answer, dict):
                told = " ".join(response.text[:300].split())
                raise MoonflowError(f"SGLang at {self._url}{path} answered HTTP {response.status_code}: {told}")
            return answer
        tried = f"failed {self._attempts} times, last: {failure}"
        raise (MoonflowError if reached else Transient)(f"SGLang at {self._url}{path} {tried}; is it running?")

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "input_ids": self._folded(request.input_ids, request.grid_thws),
            "sampling_params": {
                "max_new_tokens": request.max_new_tokens,
                "temperature": 0.0 if request.greedy else request.temperature,
                "top_p": request.top_p,
                "stop_token_ids": list(request.stop_token_ids),
                "sampling_seed": request.seed,
                # Set, it would switch off the stop ids, too.
                "ignore_eos": not request.stop_token_ids,
                "skip_special_tokens": False,
            },
            "return_logprob": True,
        }
        if request.pixel_values is not None:
            body["image_data"] = self._images(request)
        return body

    def _folded(self, ids: Sequence[int], grids: Sequence[GridTHW]) -> list[int]:
        """One pad for each image's run of them; runs of neighbouring images are told apart by their grids."""
        merge = self._image_config.merge_kernel_size
        folded: list[int] = []
        images = iter(grids)
        skip = 0
        for token in ids:
            if skip:
                skip -= 1
                continue
            folded.append(token)
            if token == self._media_pad_id:
                grid = next(images, None)
                if grid is None:
                    raise MoonflowError(f"a prompt has more media pads than its {len(grids)} grids ask for")
                if grid[0] != 1:
                    raise MoonflowError("SGLang takes images only for this model; use the embedded engine for videos")
                skip = media_tokens(grid, (merge, merge)) - 1
        return folded

    def _images(self, request: Request) -> list[str]:
        """PNGs as data URIs, put together again from the patches."""
        assert request.pixel_values is not None
        config = self._image_config
        values = request.pixel_values.float().cpu().numpy().transpose(0, 2, 3, 1)
        values = values * np.array(config.image_std, np.float32) + np.array(config.image_mean, np.float32)
        pixels = (values * 255).round().clip(0, 255).astype(np.uint8)
        images, start = [], 0
        for _, h, w in request.grid_thws:
            patches = pixels[start : start + h * w].reshape(h, w, config.patch_size, config.patch_size, 3)
            start += h * w
            picture = patches.transpose(0, 2, 1, 3, 4).reshape(h * config.patch_size, w * config.patch_size, 3)
            images.append("data:image/png;base64," + base64.b64encode(encode_png(picture)).decode())
        return images

    def _completion(self, answer: dict[str, Any]) -> Completion:
        try:
            meta = answer["meta_info"]
            pairs = [(int(entry[1]), float(entry[0])) for entry in meta["output_token_logprobs"]]
            reason = meta["finish_reason"]["type"]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            missing = "output_token_logprobs or finish_reason"
            raise MoonflowError(f"SGLang at {self._url} answered without {missing}") from error
        if reason not in ("stop", "length", "abort"):
            raise MoonflowError(f"SGLang at {self._url} answered with an unknown finish_reason {reason!r}")
        return Completion([token for token, _ in pairs], [logprob for _, logprob in pairs], reason)
