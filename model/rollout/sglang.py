"""Rollouts over SGLang's native HTTP API: POST /generate with token ids (source: SGLang 0.5.23 io_struct.py).

SGLang preprocesses an image and expands its one ``<|media_pad|>`` itself. So each run of pads is folded to one, and the
pixels are sent as a lossless PNG, put together from the patches; SGLang's processor cuts it into the same patches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.network.batch import GridTHW
from model.network.vision import media_tokens
from model.rollout.http_calls import ATTEMPTS, BACKOFF_S, TIMEOUT_S, HttpCalls
from model.rollout.keys import ENGINE_KEY
from model.rollout.pictures import pictures
from model.rollout.protocol import Completion, Request
from model.rollout.served_weights import told_digests


class SGLangEngine:
    """A ``model.rollout.protocol.RolloutEngine`` on a remote SGLang.

    Log-probs are those at the sampling temperature before top-p, like the embedded engine's. ``seed`` is sent as
    ``sampling_seed``, which SGLang follows if it runs with ``--enable-deterministic-inference``. A request that names
    stop tokens also stops at the end tokens of the checkpoint: SGLang uses both or neither.

    If weights are updated, run SGLang with ``SGLANG_VLM_CACHE_SIZE_MB=0``: 0.5.23 keeps the features of images over an
    update, even after a flush, and would see a known image with the old weights.
    """

    def __init__(
        self,
        url: str,
        media_pad_id: int,
        image_config: ImageConfig | None = None,
        attempts: int = ATTEMPTS,
        backoff_s: float = BACKOFF_S,
        timeout_s: float = TIMEOUT_S,
        key: str = ENGINE_KEY,
    ) -> None:
        """
        Args:
            url: base URL, e.g. ``http://rollout:30000``.
            media_pad_id: the tokenizer's ``<|media_pad|>``.
            image_config: the checkpoint's ``media_proc_cfg``; by default the released values.
            attempts, backoff_s, timeout_s, key: of calls, see ``model.rollout.http_calls``.
        """
        self._calls = HttpCalls("SGLang", url, attempts, backoff_s, timeout_s, key)
        self._media_pad_id = media_pad_id
        self._image_config = image_config or ImageConfig()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of ``requests``, in their order. If the call is cancelled, SGLang stops too.

        Raises:
            Transient: SGLang is unreachable.
            MoonflowError: SGLang refuses the request or answers without log-probs; or the request has a video, which
                SGLang does not take for this model.
        """
        bodies = [self.body(request) for request in requests]
        calls = [asyncio.create_task(self.complete(body)) for body in bodies]
        try:
            return list(await asyncio.gather(*calls))
        finally:
            for call in calls:
                call.cancel()

    async def complete(self, body: Mapping[str, Any]) -> Completion:
        """The completion of the request that ``body`` was made from; raises as ``generate``."""
        async with self._calls.client() as client:
            return self._completion(await self._calls.call(client, "/generate", body))

    async def update_weights(self, checkpoint: Path, version: str = "", breaks_off: bool = False) -> None:
        """Load a checkpoint folder, which SGLang's host must have under the same path, and flush the prefix cache.

        SGLang lets new requests wait until it has ended what it is generating and has loaded the weights. After a
        failure its weights are undefined: 0.5.23 would go back to those at the path that has just failed.

        Args:
            version: what later completions call these weights; "" leaves the name as it is.
            breaks_off: whether it aborts what it is generating, whose callers get the tokens so far.

        Raises:
            Transient: SGLang is unreachable.
            MoonflowError: SGLang cannot load the folder.
        """
        body: dict[str, Any] = {"model_path": str(checkpoint), "flush_cache": True}
        if breaks_off:
            body["abort_all_requests"] = True
        if version:
            body["weight_version"] = version
        async with self._calls.client() as client:
            answer = await self._calls.call(client, "/update_weights_from_disk", body)
        if not answer.get("success"):
            reason = answer.get("message", "no reason given")
            raise MoonflowError(f"{self._calls.name} did not load {checkpoint}: {reason}")

    async def weight_version(self) -> str:
        """The name of the weights that it holds.

        Raises:
            MoonflowError: SGLang is unreachable or does not say.
        """
        async with self._calls.client() as client:
            answer = await self._calls.call(client, "/model_info")
        return str(answer.get("weight_version", ""))

    async def digests(self) -> dict[str, str]:
        """A digest of each parameter in its memory, see ``model.rollout.served_weights``.

        Raises:
            MoonflowError: SGLang is unreachable or does not tell them.
        """
        async with self._calls.client() as client:
            answer = await self._calls.call(client, "/weights_checker", {"action": "checksum"})
        try:
            return told_digests(answer)
        except ValueError as error:
            raise MoonflowError(f"{self._calls.name} tells no checksums of its weights: use SGLang 0.5.23") from error

    async def healthy(self, timeout_s: float) -> bool:
        """Whether ``/health`` answers 200 within ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s), self._calls.client() as client:
                return (await client.get("/health")).status_code == 200
        except (httpx.HTTPError, TimeoutError):
            return False

    async def wait_until_healthy(self, timeout_s: float = 300.0) -> None:
        """Wait until ``/health`` answers 200.

        Raises:
            MoonflowError: it has not within ``timeout_s`` seconds.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            if await self.healthy(left):
                return
            await asyncio.sleep(self._calls.backoff_s)
        raise MoonflowError(f"{self._calls.name} was not healthy within {timeout_s:.0f} s; look at its log")

    def body(self, request: Request) -> dict[str, Any]:
        """What ``/generate`` is sent.

        Raises:
            MoonflowError: the request has a video, or pads that its grids do not ask for.
        """
        body: dict[str, Any] = {
            "input_ids": self._folded(request.input_ids, request.grid_thws),
            "sampling_params": {
                "max_new_tokens": request.max_new_tokens,
                "temperature": 0.0 if request.greedy else request.temperature,
                "top_p": request.top_p,
                "stop_token_ids": list(request.stop_token_ids),
                "sampling_seed": request.seed,
                # True would switch off the stop ids too.
                "ignore_eos": not request.stop_token_ids,
                "skip_special_tokens": False,
            },
            "return_logprob": True,
        }
        if images := pictures(request, self._image_config, "SGLang"):
            body["image_data"] = images
        return body

    def _folded(self, ids: Sequence[int], grids: Sequence[GridTHW]) -> list[int]:
        """The ids with one pad for each image; the grids say where one image's pads end and the next one's begin."""
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
                skip = media_tokens(grid, (merge, merge)) - 1
        return folded

    def _completion(self, answer: dict[str, Any]) -> Completion:
        try:
            meta = answer["meta_info"]
            reason = meta["finish_reason"]["type"]
            # A request that was aborted before anything was sampled for it has none.
            entries = meta.get("output_token_logprobs", []) if reason == "abort" else meta["output_token_logprobs"]
            pairs = [(int(entry[1]), float(entry[0])) for entry in entries]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            missing = "output_token_logprobs or finish_reason"
            raise MoonflowError(f"{self._calls.name} answered without {missing}") from error
        if reason not in ("stop", "length", "abort"):
            raise MoonflowError(f"{self._calls.name} answered with an unknown finish_reason {reason!r}")
        weights = str(meta.get("weight_version", ""))
        return Completion([token for token, _ in pairs], [logprob for _, logprob in pairs], reason, weights)
