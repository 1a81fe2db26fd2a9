"""The embedded engine: continuous batching of concurrent asyncio callers over cached MLA latents (source: ours).

Callers' requests wait in a queue; while there are any, one task of the running event loop admits them into a batch of
up to ``max_batch`` rows (prefill; equal prompts are read once) and takes decode steps, giving the loop back to other
coroutines after each. Rows leave as they finish and are refilled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.errors import MoonflowError
from model.hf import load_model
from model.multimodal import KimiK25
from model.precision import products_in
from model.rollout.decoding import PRODUCT_ROWS, LatentCache, Steps, evaluating, logits, prefill, round_up
from model.rollout.protocol import Completion, Request
from model.rollout.sampling import sample, uniforms
from model.rollout.threads import RowThreads
from model.vision import GridTHW, media_tokens

PREFILL_TOKENS = 8192  # bounds the memory of one prefill product (ours)
_PromptKey = tuple[tuple[int, ...], tuple[GridTHW, ...], bytes]


@dataclass(eq=False)
class _Sequence:
    """A request in flight; ``limit`` is how many tokens it may still grow to within the model's context."""

    request: Request
    limit: int
    chances: list[float]
    done: asyncio.Future[Completion]
    on_token: Callable[[int, float], None] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens in the cache: all but the newest."""
        return len(self.request.input_ids) + len(self.tokens) - 1

    def append(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.on_token is not None:
            self.on_token(token, logprob)
        if token in self.request.stop_token_ids:
            self.finish("stop")
        elif len(self.tokens) == self.limit:
            self.finish("length")

    def finish(self, reason: Literal["stop", "length", "abort"]) -> None:
        if not self.done.done():
            self.done.set_result(Completion(self.tokens, self.logprobs, reason))


class EmbeddedEngine:
    """``model.rollout.protocol.Engine`` in this process, on the device of the model.

    On the CPU in float32 a completion is a function of (weights, request) alone, bit for bit: see
    ``model.rollout.decoding``. As many threads as torch may use share the rows of the batch. On a GPU batch mates can
    change the last bits of a log-prob. So can ``prompt_products`` (bfloat16), which reads prompts several times as
    fast, with the arithmetic of supervised training: for who asks for answers, not for log-probs to train on.
    """

    def __init__(self, model: KimiK25, max_batch: int = 64, *, prompt_products: torch.dtype | None = None) -> None:
        if max_batch < 1:
            raise MoonflowError(f"max_batch is {max_batch}; give 1 or more")
        self._model = model
        self._max_batch = max_batch
        self._prompt_products = prompt_products
        self._waiting: list[_Sequence] = []
        self._active: list[_Sequence] = []
        self._worker: asyncio.Task[None] | None = None
        self._next_model: KimiK25 | None = None

    @classmethod
    def load(cls, checkpoint: Path, max_batch: int = 64, device: str | torch.device = "cpu") -> EmbeddedEngine:
        """An engine for a checkpoint folder; raises MoonflowError when the folder is not a whole checkpoint."""
        return cls(load_model(checkpoint).to(device), max_batch)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions of ``requests``, in their order; a cancelled caller's requests leave the batch.

        Raises:
            MoonflowError: an impossible request, before anything is generated for this call.
        """
        limits = [self._limit(request) for request in requests]
        completions = [self._enter(request, limit) for request, limit in zip(requests, limits, strict=True)]
        try:
            return list(await asyncio.gather(*completions))
        finally:
            for completion in completions:
                completion.cancel()

    def submit(
        self, request: Request, on_token: Callable[[int, float], None] | None = None
    ) -> asyncio.Future[Completion]:
        """Begin one request in the running event loop; to cancel what is returned takes it out of the batch.

        Args:
            on_token: called with each token and its log-prob (nats) as it is sampled, between two decode steps' work;
                it must be quick and must not raise.

        Raises:
            MoonflowError: an impossible request.
        """
        return self._enter(request, self._limit(request), on_token)

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows of the batch that are taken."""
        return len(self._active)

    async def update_weights(self, checkpoint: Path) -> None:
        """Serve a checkpoint folder's weights. Requests in the batch end on the old weights, waiting ones get the new.

        Raises:
            MoonflowError: when the folder is not a whole checkpoint; the old weights stay.
        """
        model = load_model(checkpoint).to(next(self._model.parameters()).device)
        self._next_model = model
        while self._next_model is model:
            self._swap_model()
            await asyncio.sleep(0)

    def set_model(self, model: KimiK25) -> None:
        """Sample from ``model`` itself, without a copy: between generations its weights may be trained in place.

        Raises:
            MoonflowError: while requests are in flight, whose cached latents belong to the old weights.
        """
        if self._waiting or self._active:
            raise MoonflowError(f"{len(self._waiting) + len(self._active)} requests are in flight; await them first")
        self._model = model

    def _limit(self, request: Request) -> int:
        config = self._model.config
        length, ids = len(request.input_ids), request.input_ids
        context, vocabulary = config.text_config.max_position_embeddings, config.text_config.vocab_size
        if not ids or min(ids) < 0 or max(ids) >= vocabulary:
            raise MoonflowError(f"a prompt of {length} tokens is empty or has ids outside 0..{vocabulary - 1}")
        if length >= context:
            raise MoonflowError(f"a prompt of {length} tokens leaves no room in the model's context of {context}")
        if request.max_new_tokens < 1 or not 0 <= request.temperature < math.inf or not 0 < request.top_p <= 1:
            raise MoonflowError(
                f"max_new_tokens {request.max_new_tokens}, temperature {request.temperature} or top_p "
                f"{request.top_p} is out of range: at least 1, at least 0, in (0, 1]"
            )
        pads = ids.count(config.media_placeholder_token_id)
        merge = config.vision_config.merge_kernel_size
        features = sum(media_tokens(grid, merge) for grid in request.grid_thws)
        patches = sum(t * h * w for t, h, w in request.grid_thws)
        given = 0 if request.pixel_values is None else len(request.pixel_values)
        if pads != features or patches != given:
            raise MoonflowError(
                f"a prompt has {pads} media pads and {given} patches, but its grids "
                f"{request.grid_thws} ask for {features} and {patches}"
            )
        return min(request.max_new_tokens, context - length)

    def _enter(
        self, request: Request, limit: int, on_token: Callable[[int, float], None] | None = None
    ) -> asyncio.Future[Completion]:
        loop = asyncio.get_running_loop()
        chances = [] if request.greedy else uniforms(request)
        sequence = _Sequence(request, limit, chances, loop.create_future(), on_token)
        self._waiting.append(sequence)
        self._wake(loop)
        return sequence.done

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())

    def _swap_model(self) -> None:
        """Latents of one model are of no use to another, so the next model waits for the batch to end."""
        if self._next_model is not None and not self._active:
            self._model, self._next_model = self._next_model, None

    async def _work(self) -> None:
        """Run the batch until nothing is left. A failure is every caller's failure: none is left waiting."""
        model, cache = self._model, LatentCache(self._model, self._max_batch)
        threads = torch.get_num_threads()
        row_threads = RowThreads(threads if cache.latents.device.type == "cpu" else 1)
        try:
            while self._waiting or self._active:
                self._swap_model()
                if model is not self._model:
                    model, cache = self._model, LatentCache(self._model, self._max_batch)
                if not self._active:
                    steps = Steps(model)
                # One intra-op thread to a share of rows: split reductions would make a completion depend, in its last
                # bits, on what else is in the batch, and a resumed RL run must sample what the killed one would have.
                torch.set_num_threads(1)
                try:
                    self._iterate(steps, cache, row_threads)
                finally:
                    torch.set_num_threads(threads)
                await asyncio.sleep(0)
        except Exception as error:
            for sequence in [*self._waiting, *self._active]:
                if not sequence.done.done():
                    sequence.done.set_exception(error)
        finally:
            for sequence in [*self._waiting, *self._active]:
                sequence.done.cancel()
            self._waiting, self._active = [], []
            row_threads.close()

    @torch.inference_mode()
    def _iterate(self, steps: Steps, cache: LatentCache, threads: RowThreads) -> None:
        """Fill free rows, then one decode step."""
        self._sweep(cache)
        if self._next_model is None:
            self._admit(steps.model, cache, threads)
            self._sweep(cache)
        if self._active:
            tokens = [sequence.tokens[-1] for sequence in self._active]
            self._sample(self._active, steps(cache, tokens, [sequence.cached for sequence in self._active], threads))
            self._sweep(cache)

    def _sweep(self, cache: LatentCache) -> None:
        """Drop what is finished or cancelled; the last row moves into each hole."""
        self._waiting = [sequence for sequence in self._waiting if not sequence.done.done()]
        for row in reversed(range(len(self._active))):
            if self._active[row].done.done():
                last = self._active.pop()
                if row < len(self._active):
                    cache.move(len(self._active), row)
                    self._active[row] = last

    def _admit(self, model: KimiK25, cache: LatentCache, threads: RowThreads) -> None:
        free = self._max_batch - len(self._active)
        # A prefill of one prompt costs about a decode step, so freed rows are refilled an eighth at a time (ours).
        if not self._waiting or free < min(len(self._waiting), max(1, self._max_batch // 8)):
            return
        admitted = self._waiting[:free]
        self._waiting = self._waiting[len(admitted) :]
        first_row = len(self._active)
        self._active += admitted
        cache.reserve(max(len(sequence.request.input_ids) + sequence.limit for sequence in admitted))
        rows: dict[_PromptKey, list[int]] = {}
        for row, sequence in enumerate(admitted, first_row):
            rows.setdefault(_prompt_key(sequence.request), []).append(row)
        last: dict[int, Tensor] = {}
        for prompts in _buckets(rows):
            requests = [self._active[rows[key][0]].request for key in prompts]

            def read(start: int, end: int, prompts=prompts, requests=requests) -> None:
                x_BTD = _embed(model, requests[start:end])
                lengths = [len(request.input_ids) for request in requests[start:end]]
                latents, last_BD = prefill(model.language_model.model, x_BTD, lengths)
                for index, key in enumerate(prompts[start:end]):
                    for row in rows[key]:
                        cache.store(row, latents[:, index])
                        last[row] = last_BD[index]

            # A single prompt has no rows to share; in another precision its bits hang on the threads anyway.
            if len(prompts) == 1 and self._prompt_products is not None:
                torch.set_num_threads(threads.count)
            with products_in(self._prompt_products), evaluating(model):
                threads.over(len(prompts), read)
            torch.set_num_threads(1)
        last_BD = torch.stack([last[first_row + index] for index in range(len(admitted))])
        self._sample(admitted, logits(model, last_BD))

    def _sample(self, sequences: list[_Sequence], logits_BV: Tensor) -> None:
        chances = [s.chances[len(s.tokens)] if s.chances else 0.0 for s in sequences]
        drawn = sample(logits_BV, [sequence.request for sequence in sequences], chances)
        for sequence, token, logprob in zip(sequences, *drawn, strict=True):
            sequence.append(token, logprob)


def _prompt_key(request: Request) -> _PromptKey:
    pixels = b"" if request.pixel_values is None else request.pixel_values.cpu().numpy().tobytes()
    return tuple(request.input_ids), tuple(request.grid_thws), pixels


def _buckets(prompts: Iterable[_PromptKey]) -> list[list[_PromptKey]]:
    """Prompts that pad to the same length, up to PREFILL_TOKENS at a time."""
    buckets: dict[int, list[list[_PromptKey]]] = {}
    for prompt in prompts:
        tokens = round_up(len(prompt[0]))
        batches = buckets.setdefault(tokens, [[]])
        if batches[-1] and (len(batches[-1]) + 1) * tokens > PREFILL_TOKENS:
            batches.append([])
        batches[-1].append(prompt)
    return [batch for batches in buckets.values() for batch in batches]


def _embed(model: KimiK25, requests: Sequence[Request]) -> Tensor:
    """[B, T, D] padded on the right."""
    device = model.language_model.lm_head.weight.device
    tokens = round_up(max(len(request.input_ids) for request in requests))
    padding = model.config.pad_token_id
    ids = [request.input_ids + [padding] * (tokens - len(request.input_ids)) for request in requests]
    pixels = [request.pixel_values for request in requests if request.pixel_values is not None]
    if not pixels:
        return model.embed(torch.tensor(ids, device=device), None, [])
    grids = [grid for request in requests for grid in request.grid_thws]
    # The projector's products, too, have at least PRODUCT_ROWS rows: very small images are embedded more than once.
    features = sum(media_tokens(grid, model.config.vision_config.merge_kernel_size) for grid in grids)
    copies = -(-PRODUCT_ROWS // features)
    pixel_values = torch.cat(pixels * copies).to(device)
    return model.embed(torch.tensor(ids * copies, device=device), pixel_values, grids * copies)[: len(requests)]
