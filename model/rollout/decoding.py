"""A cache of MLA latents, and decode steps over it (source: DeepSeek-V2 section 2.1).

A cache column holds, per layer and token, the normalised kv latent and the rotated rope key. Prefill and decode are
modes of the network's layers (``model.network.decoder``); for float32 weights on a CPU a decode step is
``model.network.kernel_decode``.

Batch invariance on the CPU (ours): a step's kernels give a row the same bits whatever shares the batch. So do torch's
operators in the prefill, with one intra-op thread, if a product has ``INVARIANT_ROWS`` rows or more and element-wise
work is whole vectors (else its tail is scalar): prompts are padded to a multiple of 32 tokens, and products to 16 rows.
``tests/rollout`` compares the bits.

Shapes: B rows, T tokens in a row, D hidden, V vocabulary, W = kv latent + rope dims, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network.forward_context import ForwardContext
from model.network.kernel_decode import KernelDecode
from model.network.kernels.decoding import ROWS
from model.network.multimodal import KimiK25
from model.network.operations.choice import decodes_by_kernels
from model.network.precision import INVARIANT_ROWS
from model.network.row_threads import RowThreads

BATCH_INVARIANT = ForwardContext(batch_invariant=True)
SPAN = 32


def round_up(tokens: int) -> int:
    """``tokens``, rounded up to a whole number of spans."""
    return -(-tokens // SPAN) * SPAN


class LatentCache:
    """Latents [L, rows, W, capacity] of up to ``rows`` sequences; grows in capacity as sequences need it."""

    def __init__(self, model: KimiK25, rows: int) -> None:
        config = model.config.text_config
        weight = model.language_model.lm_head.weight
        self.latents = weight.new_zeros(
            config.num_hidden_layers, rows + -rows % ROWS, config.kv_lora_rank + config.qk_rope_head_dim, SPAN
        ).detach()

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` in every row."""
        missing = round_up(tokens) - self.latents.shape[3]
        if missing > 0:
            self.latents = F.pad(self.latents, (0, missing))

    def store(self, row: int, latents: Tensor) -> None:
        """Put a prefilled sequence's latents [L, T, W] into ``row``."""
        self.latents[:, row, :, : latents.shape[1]] = latents.mT

    def move(self, source: int, target: int) -> None:
        """Copy the latents of row ``source`` to row ``target``."""
        self.latents[:, target] = self.latents[:, source]


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


def logits(model: KimiK25, x_BD: Tensor) -> Tensor:
    """[B, V] of the last layer's hidden states."""
    rows = len(x_BD)
    if rows < INVARIANT_ROWS:
        x_BD = F.pad(x_BD, (0, 0, 0, INVARIANT_ROWS - rows))
    return model.language_model.lm_head(model.language_model.model.norm(x_BD))[:rows].float()


class Steps:
    """Decode steps of a model. Values written into its weights are seen; if weights are replaced, make a new one."""

    def __init__(self, model: KimiK25) -> None:
        language_model = model.language_model
        self.model = model
        self._kernels = KernelDecode(language_model) if decodes_by_kernels(language_model.lm_head.weight) else None

    def __call__(
        self, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int], threads: RowThreads
    ) -> Tensor:
        """One step of rows 0 .. B-1: append each row's newest token to the cache and return its logits [B, V].

        Args:
            tokens: the newest token of each row.
            lengths: how many tokens each row has in the cache already.
        """
        if self._kernels is not None:
            return self._kernels(cache.latents, tokens, lengths, threads)
        with evaluating(self.model):
            return decode(self.model, cache, tokens, lengths)


def decode(model: KimiK25, cache: LatentCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """``Steps.__call__`` by torch's operators, on any device."""
    ids_B, lengths_B = torch.tensor([tokens, lengths], device=cache.latents.device)
    latents_LBWT = cache.latents[..., : round_up(max(lengths) + 1)]
    return logits(model, model.language_model.model.decode(ids_B, latents_LBWT, lengths_B, BATCH_INVARIANT))
