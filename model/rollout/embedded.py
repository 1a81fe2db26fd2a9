"""The embedded engine: continuous batching of concurrent asyncio callers over cached MLA latents (source: ours).

Requests wait in a queue. While there are any, one task of the running event loop moves them into a batch of up to
``max_batch`` rows, reads their prompts and takes decode steps; after each step other coroutines run. A finished row
leaves the batch and is filled again. What it had read is kept (``model.rollout.prefix_cache``): of a prompt that begins
like an earlier sequence, such as the next turn of an episode, only the rest is read.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.network.multimodal import KimiK25
from model.network.row_threads import RowThreads
from model.network.vision import media_tokens
from model.rollout.decoding import SPAN, LatentCache, Reader, Unread
from model.rollout.prefix_cache import Key, PrefixCache, common, key_of
from model.rollout.protocol import Completion, Request
from model.rollout.sampling import sample, uniforms

KEPT_TOKENS = 2**15  # of the preset tiny they take 56 MiB (ours)


@dataclass(eq=False)
class _Sequence:
    """A request in flight.

    Attributes:
        request: its ``input_ids`` end with what was sampled before the weights last changed, if they did.
        limit: most tokens of its completion: what it asks for, or what the model's context leaves.
        chances: its random numbers from ``uniforms``, one per token; none if it is greedy.
        prompt: what the latents of ``request.input_ids`` follow from.
        reread: how many of its tokens are part of ``prompt``.
        versions: ``Completion.weight_versions``.
        asked: when it was asked for, on the clock of `time.perf_counter`. waited_s: until it first had a row.
    """

    request: Request
    limit: int
    chances: list[float]
    prompt: Key
    done: asyncio.Future[Completion]
    on_token: Callable[[int, float], None] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    reread: int = 0
    asked: float = field(default_factory=time.perf_counter)
    waited_s: float | None = None

    @property
    def cached(self) -> int:
        """How many of its tokens are in the cache: all but the newest."""
        return len(self.prompt) + len(self.tokens) - self.reread - 1

    @property
    def read(self) -> Key:
        """What the latents of its row follow from."""
        return (*self.prompt, *self.tokens[self.reread : -1])

    def read_again(self) -> None:
        """Take what was sampled so far as the end of the prompt, which is to be read with other weights."""
        sampled = self.tokens[self.reread :]
        self.request = replace(self.request, input_ids=[*self.request.input_ids, *sampled])
        self.prompt, self.reread = (*self.prompt, *sampled), len(self.tokens)

    def append(self, token: int, logprob: float, version: int) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if self.on_token is not None:
            self.on_token(token, logprob)
        if token in self.request.stop_token_ids:
            self.complete("stop")
        elif len(self.tokens) == self.limit:
            self.complete("length")

    def complete(self, reason: Literal["stop", "length", "abort"]) -> None:
        if not self.done.done():
            self.done.set_result(
                Completion(
                    self.tokens, self.logprobs, reason, weight_versions=self.versions, waited_s=self.waited_s or 0.0
                )
            )  # fmt: skip

    def begin(self) -> None:
        """It has a row now."""
        if self.waited_s is None:
            self.waited_s = time.perf_counter() - self.asked


class EmbeddedEngine:
    """A ``model.rollout.protocol.RolloutEngine`` in this process, on the device of the model.

    On the CPU in float32 a completion depends on weights and request alone, bit for bit, whatever is in the batch and
    whatever is kept (``model.rollout.decoding``). On a GPU both can change the last bits of a log-prob. The rows of a
    batch are divided among as many threads as torch may use.

    Args:
        max_batch: most rows of the batch.
        prompt_products: dtype in which prompts are multiplied; None for the model's. ``narrow_products`` reads prompts
            several times as fast where the CPU multiplies bfloat16, with the arithmetic of supervised training, but can
            change the last bits of a log-prob: for callers who need answers, not log-probs to train on.
        kept_tokens: of how many tokens latents are kept, besides those of the batch; 0 reads every prompt from its
            first token.
    """

    def __init__(
        self,
        model: KimiK25,
        max_batch: int = 64,
        *,
        prompt_products: torch.dtype | None = None,
        kept_tokens: int = KEPT_TOKENS,
    ) -> None:
        if max_batch < 1:
            raise MoonflowError(f"max_batch is {max_batch}; give 1 or more")
        self._model = model
        self._max_batch = max_batch
        self._prompt_products = prompt_products
        self._kept, self._kept_weights = PrefixCache(kept_tokens), _weights(model)
        self._waiting: list[_Sequence] = []
        self._active: list[_Sequence] = []
        self._worker: asyncio.Task[None] | None = None
        self._next_model: KimiK25 | None = None
        self._version = 0  # how often it was given weights

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

        What was read with the old weights is forgotten. After a change of weights in place the engine sees by itself
        that torch's operators made it; after any other, call this again.

        Raises:
            MoonflowError: requests are in flight, whose cached latents belong to the old weights.
        """
        if self._waiting or self._active:
            raise MoonflowError(f"{len(self._waiting) + len(self._active)} requests are in flight; await them first")
        self._use(model)

    def switch_model(self, model: KimiK25) -> None:
        """Sample from ``model`` from the next token on, also the rest of what is in flight (partial rollouts, K2.5
        paper App. D). Its weights may change at calls of this only. Call it in the event loop that generates.

        Requests keep their tokens, the log-probs of these and their random numbers. Nothing that the old weights read
        is used again: prompts, and the tokens sampled so far, are read anew. A completion with a media pad, which has
        no pixels that could be read, ends here ("length").
        """
        pad = self._model.config.media_placeholder_token_id
        for sequence in self._active:
            if pad in sequence.tokens:
                sequence.complete("length")
            else:
                sequence.read_again()
        self._waiting, self._active = [*self._active, *self._waiting], []
        self._use(model)

    def _use(self, model: KimiK25) -> None:
        self._model = model
        self._version += 1
        self._kept.clear()

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
        loop, config = asyncio.get_running_loop(), self._model.config
        chances = [] if request.greedy else uniforms(request)
        prompt = key_of(request, config.media_placeholder_token_id, config.vision_config.merge_kernel_size)
        sequence = _Sequence(request, limit, chances, prompt, loop.create_future(), on_token)
        self._waiting.append(sequence)
        self._wake(loop)
        return sequence.done

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())

    def _swap_model(self) -> None:
        """Use the next model once the batch is empty: the cached latents belong to the old one."""
        if self._next_model is not None and not self._active:
            model, self._next_model = self._next_model, None
            self._use(model)

    def _start(self) -> Reader:
        """A reader for the weights of now; what was kept with others is forgotten."""
        if self._kept_weights != (weights := _weights(self._model)):
            self._kept.clear()
            self._kept_weights = weights
        return Reader(self._model, self._prompt_products)

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
                    reader = self._start()
                # One intra-op thread for each part of the rows: split reductions would make the last bits of a
                # completion depend on the rest of the batch. A resumed RL run must sample what the killed one would.
                torch.set_num_threads(1)
                try:
                    self._iterate(reader, cache, row_threads)
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
    def _iterate(self, reader: Reader, cache: LatentCache, threads: RowThreads) -> None:
        """Fill free rows, then take one decode step."""
        self._sweep(cache)
        if self._next_model is None:
            self._admit(reader, cache, threads)
            self._sweep(cache)
        if self._active:
            tokens = [sequence.tokens[-1] for sequence in self._active]
            lengths = [sequence.cached for sequence in self._active]
            self._sample(self._active, reader.step(cache, tokens, lengths, threads))
            self._sweep(cache)

    def _sweep(self, cache: LatentCache) -> None:
        """Remove finished and cancelled requests, and keep what they had read; the last row moves into each gap."""
        self._waiting = [sequence for sequence in self._waiting if not sequence.done.done()]
        for row in reversed(range(len(self._active))):
            sequence = self._active[row]
            if sequence.done.done():
                self._kept.keep(sequence.read, cache.of(row, 0, sequence.cached))
                last = self._active.pop()
                if row < len(self._active):
                    cache.copy(len(self._active), row, last.cached)
                    self._active[row] = last

    def _admit(self, reader: Reader, cache: LatentCache, threads: RowThreads) -> None:
        """Move waiting requests into free rows: read their prompts and sample their first tokens."""
        free = self._max_batch - len(self._active)
        # Reading one prompt costs about a decode step, so freed rows are refilled an eighth at a time (ours).
        if not self._waiting or free < min(len(self._waiting), max(1, self._max_batch // 8)):
            return
        admitted = self._waiting[:free]
        self._waiting = self._waiting[len(admitted) :]
        first_row = len(self._active)
        for sequence in admitted:
            sequence.begin()
        self._active += admitted
        cache.reserve(max(len(sequence.prompt) + sequence.limit - sequence.reread for sequence in admitted))
        rows: dict[Key, list[int]] = {}
        for row, sequence in enumerate(admitted, first_row):
            rows.setdefault(sequence.prompt, []).append(row)
        after: dict[int, Tensor] = {}
        unread = sorted(rows)
        while unread:
            begun: dict[Key, Unread] = {}
            last: Key = ()
            for key in unread:
                # A prompt that begins like one that is read now waits until that one is kept: neighbours in this order
                # have the most in common.
                start = self._restore(cache, rows[key][0], key)
                if self._kept.tokens > 0 and common(key, last) >= start + SPAN:
                    continue
                last = key
                begun[key] = Unread(self._active[rows[key][0]].request, rows[key][0], start)
            logits_BV = reader.read(cache, list(begun.values()), threads)
            for (key, prompt), logits_V in zip(begun.items(), logits_BV, strict=True):
                self._kept.keep(key, cache.of(prompt.row, 0, len(key)))
                for row in rows[key]:
                    after[row] = logits_V
                    if row != prompt.row:
                        cache.copy(prompt.row, row, len(key))
            unread = [key for key in unread if key not in begun]
        self._sample(admitted, torch.stack([after[first_row + index] for index in range(len(admitted))]))

    def _restore(self, cache: LatentCache, row: int, prompt: Key) -> int:
        """Put what is kept of a prompt into a row; returns how many tokens that is."""
        start = 0
        for latents_LWN in self._kept.find(prompt):
            cache.of(row, start, start + latents_LWN.shape[2]).copy_(latents_LWN)
            start += latents_LWN.shape[2]
        return start

    def _sample(self, sequences: list[_Sequence], logits_BV: Tensor) -> None:
        chances = [s.chances[len(s.tokens)] if s.chances else 0.0 for s in sequences]
        drawn = sample(logits_BV, [sequence.request for sequence in sequences], chances)
        for sequence, token, logprob in zip(sequences, *drawn, strict=True):
            sequence.append(token, logprob, self._version)


def _weights(model: KimiK25) -> list[tuple[int, int]]:
    """Where every weight is, and how often torch's operators wrote to it."""
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in model.parameters()]
