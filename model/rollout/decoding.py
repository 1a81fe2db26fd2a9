"""A cache of MLA latents, and how tokens are read into it: prompts, and decode steps (source: DeepSeek-V2 section 2.1).

A cache column holds, per layer and token, the normalised kv latent and the rotated rope key. A prompt and a decode step
are modes of the network's layers (``model.network.decoder``); for float32 weights on a CPU both are
``model.network.kernel_cached``, where a token's bits depend on nothing but the tokens before it: not on what shares the
batch, on the number of threads, or on whether the cache got a token from a prompt or from a decode step.
``tests/rollout`` compares the bits.

Shapes: B rows, T tokens in a row, P earlier tokens of a row, N new tokens of all rows, D hidden, V vocabulary, W = kv
latent + rope dims, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from model.network.batch import GridTHW
from model.network.forward_context import ForwardContext
from model.network.kernel_cached import CachedForward
from model.network.kernels.decoding import ROWS
from model.network.multimodal import KimiK25
from model.network.operations.choice import reads_by_kernels
from model.network.precision import INVARIANT_ROWS
from model.network.row_threads import RowThreads
from model.network.vision import media_tokens
from model.rollout.protocol import Request

SPAN = 32
READ_TOKENS = 8192  # most tokens that torch's operators read at once, which bounds their memory (ours)


def round_up(tokens: int) -> int:
    """``tokens``, rounded up to a whole number of spans."""
    return -(-tokens // SPAN) * SPAN


class LatentCache:
    """Latents [L, rows + 1, W, capacity] of up to ``rows`` sequences; grows in capacity as sequences need it. The last
    row takes what nobody needs."""

    def __init__(self, model: KimiK25, rows: int) -> None:
        config = model.config.text_config
        weight = model.language_model.lm_head.weight
        self.latents = weight.new_zeros(
            config.num_hidden_layers, rows + 1, config.kv_lora_rank + config.qk_rope_head_dim, SPAN
        ).detach()

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` in every row."""
        missing = round_up(tokens) - self.latents.shape[3]
        if missing > 0:
            self.latents = F.pad(self.latents, (0, missing))

    def of(self, row: int, start: int, end: int) -> Tensor:
        """The latents [L, W, end - start] of some of a row's tokens, in the cache's own memory."""
        return self.latents[:, row, :, start:end]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of row ``source`` to row ``target``."""
        self.of(target, 0, tokens).copy_(self.of(source, 0, tokens))


@dataclass(frozen=True)
class Unread:
    """A prompt of which the first ``start`` tokens are in a row of the cache, and not the others."""

    request: Request
    row: int
    start: int

    @property
    def count(self) -> int:
        """How many tokens are to be read."""
        return len(self.request.input_ids) - self.start


@contextmanager
def evaluating(model: KimiK25) -> Iterator[None]:
    """Inside, the model is in evaluation mode, so that its routers do not count tokens; afterwards as it was before."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


class Reader:
    """Reads tokens into a cache. Values written into the model's weights are seen; if weights are replaced, make a new
    one.

    Args:
        prompt_products: dtype in which prompts are multiplied; None for the model's.
    """

    def __init__(self, model: KimiK25, prompt_products: torch.dtype | None) -> None:
        language_model = model.language_model
        self.model, self._context = model, ForwardContext(prompt_products)
        self._kernels = CachedForward(language_model) if reads_by_kernels(language_model.lm_head.weight) else None

    def read(self, cache: LatentCache, prompts: Sequence[Unread], threads: RowThreads) -> Tensor:
        """Add prompts to the cache, which has room for them; the logits [B, V] that follow them."""
        if self._kernels is not None and self._context.products is None:
            return torch.cat(threads.over(len(prompts), lambda start, end: self._by_kernels(cache, prompts[start:end])))
        with evaluating(self.model):
            return self._by_torch(cache, prompts, threads)

    def step(self, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int], threads: RowThreads) -> Tensor:
        """Append the newest token of rows 0 .. B-1 to the cache; the logits [B, V] that follow them.

        Args:
            tokens: the newest token of each row.
            lengths: how many tokens each row has in the cache already.
        """
        if self._kernels is None:
            with evaluating(self.model):
                return decode(self.model, cache, tokens, lengths)
        kernels, embeddings = self._kernels, self.model.language_model.model.embed_tokens.weight

        def some(start: int, end: int) -> Tensor:
            x_ND = embeddings[torch.tensor(tokens[start:end])]
            rows = range(start, end)
            return kernels.read(x_ND, cache.latents, rows, lengths[start:end], [1] * len(rows))

        return torch.cat(threads.over(len(tokens), some, ROWS))

    def _by_kernels(self, cache: LatentCache, prompts: Sequence[Unread]) -> Tensor:
        assert self._kernels is not None
        x_ND = embed(self.model, prompts, self._context)
        columns = zip(*((prompt.row, prompt.start, prompt.count) for prompt in prompts), strict=True)
        return self._kernels.read(x_ND, cache.latents, *columns)

    def _by_torch(self, cache: LatentCache, prompts: Sequence[Unread], threads: RowThreads) -> Tensor:
        logits_BV: list[Tensor] = [torch.empty(0)] * len(prompts)
        for group in _groups(prompts):

            def some(start: int, end: int, group: Sequence[int] = group) -> None:
                read = prefill(self.model, cache, [prompts[index] for index in group[start:end]], self._context)
                for index, logits_V in zip(group[start:end], read, strict=True):
                    logits_BV[index] = logits_V

            if len(group) == 1:  # there are no rows to divide; here bits depend on the threads anyway
                torch.set_num_threads(threads.count)
            threads.over(len(group), some)
            torch.set_num_threads(1)
        return torch.stack(logits_BV)


def _groups(prompts: Sequence[Unread]) -> list[list[int]]:
    """The prompts by their numbers, grouped by padded lengths, in groups of at most READ_TOKENS tokens."""
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for index, prompt in enumerate(prompts):
        shape = round_up(prompt.count), round_up(prompt.start)
        batches = groups.setdefault(shape, [[]])
        if batches[-1] and (len(batches[-1]) + 1) * sum(shape) > READ_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return [batch for batches in groups.values() for batch in batches]


def prefill(model: KimiK25, cache: LatentCache, prompts: Sequence[Unread], context: ForwardContext) -> Tensor:
    """``Reader.read`` by torch's operators, on any device."""
    counts, starts = [prompt.count for prompt in prompts], [prompt.start for prompt in prompts]
    x_BTD = pad_sequence(list(embed(model, prompts, context).split(counts)), batch_first=True)
    x_BTD = F.pad(x_BTD, (0, 0, 0, round_up(max(counts)) - x_BTD.shape[1]))
    rows = [prompt.row for prompt in prompts]
    past_LBPW = cache.latents[:, rows, :, : round_up(max(starts))].mT if any(starts) else None
    latents_LBTW, last_BD = model.language_model.model.prefill(x_BTD, counts, context, past_LBPW, starts)
    for index, prompt in enumerate(prompts):
        cache.of(prompt.row, prompt.start, prompt.start + prompt.count).copy_(latents_LBTW[:, index, : prompt.count].mT)
    return logits(model, last_BD)


def decode(model: KimiK25, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """``Reader.step`` by torch's operators, on any device."""
    ids_B, lengths_B = torch.tensor([tokens, lengths], device=cache.latents.device)
    latents_LBWT = cache.latents[..., : round_up(max(lengths) + 1)]
    return logits(model, model.language_model.model.decode(ids_B, latents_LBWT, lengths_B))


def logits(model: KimiK25, x_BD: Tensor) -> Tensor:
    """[B, V] of the last layer's hidden states."""
    return model.language_model.lm_head(model.language_model.model.norm(x_BD)).float()


def embed(model: KimiK25, prompts: Sequence[Unread], context: ForwardContext) -> Tensor:
    """Embeddings [N, D] of the tokens to read, prompt after prompt. Of a medium, all pads are read or none."""
    device, config = model.language_model.lm_head.weight.device, model.config
    merge = config.vision_config.merge_kernel_size
    ids: list[int] = []
    media: list[tuple[Tensor, GridTHW]] = []
    for prompt in prompts:
        request, new = prompt.request, prompt.request.input_ids[prompt.start :]
        ids += new
        pads, first = new.count(config.media_placeholder_token_id), len(request.grid_thws)
        while pads > 0:
            first -= 1
            pads -= media_tokens(request.grid_thws[first], merge)
        if request.pixel_values is not None:
            patches = request.pixel_values.split([t * h * w for t, h, w in request.grid_thws])
            media += list(zip(patches, request.grid_thws, strict=True))[first:]
    if not media:
        return model.embed(torch.tensor(ids, device=device), None, [], context=context)
    # The projector's products have at least INVARIANT_ROWS rows: very small images are embedded more than once.
    copies = -(-INVARIANT_ROWS // sum(media_tokens(grid, merge) for _, grid in media))
    pixel_values = torch.cat([patches for patches, _ in media * copies]).to(device)
    grids = [grid for _, grid in media * copies]
    return model.embed(torch.tensor(ids * copies, device=device), pixel_values, grids, context=context)[: len(ids)]
