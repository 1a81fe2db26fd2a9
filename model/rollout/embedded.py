"""The embedded engine: continuous batching of concurrent asyncio callers over cached MLA latents (source: ours).

Requests wait in a queue. While there are any, one task of the running event loop moves them into a batch of up to
``max_batch`` rows (prefill; equal prompts are computed once) and takes decode steps; after each step other coroutines
run. A finished row leaves the batch and is filled again.

Shapes: B rows, T tokens in a row, D hidden, V vocabulary.
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

from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.network.batch import GridTHW
from model.network.forward_context import ForwardContext
from model.network.multimodal import KimiK25
from model.network.precision import INVARIANT_ROWS
from model.network.row_threads import RowThreads
from model.network.vision import media_tokens
from model.rollout.decoding import LatentCache, Steps, evaluating, logits, round_up
from model.rollout.protocol import Completion, Request
from model.rollout.sampling import sample, uniforms

PREFILL_TOKENS = 8192  # most tokens of one prefill, which bounds its memory (ours)
_PromptKey = tuple[tuple[int, ...], tuple[GridTHW, ...], bytes]


@dataclass(eq=False)
class _Sequence:
    """A request in flight.

    Attributes:
        limit: most tokens of its completion: what it asks for, or what the model's context leaves.
        chances: its random numbers from ``uniforms``, one per token; none if it is greedy.
    """

    request: Request
    limit: int
    chances: list[float]
    done: asyncio.Future[Completion]
    on_token: Callable[[int, float], None] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """How many of its tokens are in the cache: all but the newest."""
        return len(self.request.input_ids) + len(self.tokens) - 1

    def append(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.on_token is not None:
            self.on_token(token, logprob)
        if token in self.request.stop_token_ids:
            self.complete("stop")
        elif len(self.tokens) == self.limit:
            self.complete("length")

    def complete(self, reason: Literal["stop", "length", "abort"]) -> None:
        if not self.done.done():
            self.done.set_result(Completion(self.tokens, self.logprobs, reason))


class EmbeddedEngine:
    """A ``model.rollout.protocol.RolloutEngine`` in this process, on the device of the model.

    On the CPU in float32 a completion depends on weights and request alone, bit for bit
    (``model.rollout.decoding``). On a GPU the other rows of the batch can change the last bits of a log-prob. The rows
    of a batch are divided among as many threads as torch may use.

    Args:
        max_batch: most rows of the batch.
        prompt_products: dtype in which prompts are multiplied; None for the model's. ``narrow_products`` reads prompts
            several times as fast, with the arithmetic of supervised training, but can change the last bits of a
            log-prob: for callers who need answers, not log-probs to train on.
    """

    def __init__(self, model: KimiK25, max_batch: int = 64, *, prompt_products: torch.dtype | None = None) -> None:
        if max_batch < 1:
            raise MoonflowError(f"max_batch is {max_batch}; give 1 or more")
        self._model = model
        self._max_batch = max_batch
        self._prompt_context = ForwardContext(prompt_products, batch_invariant=prompt_products is None)
        self._waiting: list[_Sequence] = []
        self._active: list[_Sequence] = []
        self._worker: asyncio.Task[None] | None = None
        self._next_model: KimiK25 | None = None

    @classmethod
    def load(cls, checkpoint: Path, max_batch: int = 64, device: str | torch.device = "cpu") -> EmbeddedEngine:
        """An engine for a checkpoint folder.

        Raises:
            MoonflowError: the folder is not a whole checkpoint.
        """
        return cls(load_model(checkpoint).to(device), max_batch)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of ``requests``, in their order. If the caller is cancelled, its requests leave the batch.

        Raises:
            MoonflowError: a request is impossible; then nothing is generated for this call.
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
        """Begin one request in the running event loop. Cancel the returned future to take it out of the batch.

        Args:
            on_token: called with each token and its log-prob (nats) as it is sampled, between two decode steps; it must
                be quick and must not raise.

        Raises:
            MoonflowError: the request is impossible.
        """
        return self._enter(request, self._limit(request), on_token)

    @property
    def waiting(self) -> int:
        """How many requests have no row yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many rows of the batch are taken."""
        return len(self._active)

    async def update_weights(self, checkpoint: Path) -> None:
        """Use the weights of a checkpoint folder for waiting and later requests; the batch finishes with the old ones.

        Raises:
            MoonflowError: the folder is not a whole checkpoint; the old weights stay.
        """
        model = load_model(checkpoint).to(next(self._model.parameters()).device)
        self._next_model = model
        while self._next_model is model:
            self._swap_model()
            await asyncio.sleep(0)

    def set_model(self, model: KimiK25) -> None:
        """Sample from ``model`` itself, without a copy: its weights may be trained in place between generations.

        Raises:
            MoonflowError: requests are in flight, whose cached latents belong to the old weights.
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
        """Use the next model once the batch is empty: the cached latents belong to the old one."""
        if self._next_model is not None and not self._active:
            self._model, self._next_model = self._next_model, None

    async def _work(self) -> None:
        """Run the batch until nothing is left. A failure is raised in every caller, so that none waits for ever."""
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
                # One intra-op thread for each part of the rows: split reductions would make the last bits of a
                # completion depend on the rest of the batch. A resumed RL run must sample what the killed one would.
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
        """Fill free rows, then take one decode step."""
        self._sweep(cache)
        if self._next_model is None:
            self._admit(steps.model, cache, threads)
            self._sweep(cache)
        if self._active:
            tokens = [sequence.tokens[-1] for sequence in self._active]
            self._sample(self._active, steps(cache, tokens, [sequence.cached for sequence in self._active], threads))
            self._sweep(cache)

    def _sweep(self, cache: LatentCache) -> None:
        """Remove finished and cancelled requests; the last row moves into each gap."""
        self._waiting = [sequence for sequence in self._waiting if not sequence.done.done()]
        for row in reversed(range(len(self._active))):
            if self._active[row].done.done():
                last = self._active.pop()
                if row < len(self._active):
                    cache.move(len(self._active), row)
                    self._active[row] = last

    def _admit(self, model: KimiK25, cache: LatentCache, threads: RowThreads) -> None:
        """Move waiting requests into free rows: read their prompts and sample their first tokens."""
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

            def prefill(start: int, end: int, prompts=prompts, requests=requests) -> None:
                x_BTD = _embed(model, requests[start:end], self._prompt_context)
                lengths = [len(request.input_ids) for request in requests[start:end]]
                latents, last_BD = model.language_model.model.prefill(x_BTD, lengths, self._prompt_context)
                for index, key in enumerate(prompts[start:end]):
                    for row in rows[key]:
                        cache.store(row, latents[:, index])
                        last[row] = last_BD[index]

            # A single prompt has no rows to divide; in another precision its bits depend on the threads anyway.
            if len(prompts) == 1 and not self._prompt_context.batch_invariant:
                torch.set_num_threads(threads.count)
            with evaluating(model):
                threads.over(len(prompts), prefill)
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
    """Prompts grouped by padded length, in groups of at most PREFILL_TOKENS tokens."""
    buckets: dict[int, list[list[_PromptKey]]] = {}
    for prompt in prompts:
        tokens = round_up(len(prompt[0]))
        batches = buckets.setdefault(tokens, [[]])
        if batches[-1] and (len(batches[-1]) + 1) * tokens > PREFILL_TOKENS:
            batches.append([])
        batches[-1].append(prompt)
    return [batch for batches in buckets.values() for batch in batches]


def _embed(model: KimiK25, requests: Sequence[Request], context: ForwardContext) -> Tensor:
    """Embeddings [B, T, D] of prompts, padded on the right."""
    device = model.language_model.lm_head.weight.device
    tokens = round_up(max(len(request.input_ids) for request in requests))
    padding = model.config.pad_token_id
    ids = [request.input_ids + [padding] * (tokens - len(request.input_ids)) for request in requests]
    pixels = [request.pixel_values for request in requests if request.pixel_values is not None]
    if not pixels:
        return model.embed(torch.tensor(ids, device=device), None, [], context=context)
    grids = [grid for request in requests for grid in request.grid_thws]
    # The projector's products, too, have at least INVARIANT_ROWS rows: very small images are embedded more than once.
    features = sum(media_tokens(grid, model.config.vision_config.merge_kernel_size) for grid in grids)
    copies = -(-INVARIANT_ROWS // features)
    pixel_values = torch.cat(pixels * copies).to(device)
    ids_BT = torch.tensor(ids * copies, device=device)
    return model.embed(ids_BT, pixel_values, grids * copies, context=context)[: len(requests)]
