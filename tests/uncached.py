"""What engines are compared with: the network's whole forward, which keeps nothing of earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.network.documents import Documents
from model.network.multimodal import KimiK25
from model.rollout.protocol import Request


@torch.no_grad()
def full_logits(model: KimiK25, request: Request, completion: list[int]) -> torch.Tensor:
    """Logits [len(completion), V] that predict each token of the completion, without any cache."""
    ids = torch.tensor([request.input_ids + completion])
    x = model.embed(ids, request.pixel_values, request.grid_thws)
    positions = torch.arange(ids.shape[1])[None]
    hidden = model.language_model.model(x, positions, Documents.of(torch.zeros_like(ids)))
    return model.language_model.lm_head(hidden[0, len(request.input_ids) - 1 : -1])


def full_logprobs(
    models: Sequence[KimiK25], request: Request, completion: list[int], chosen: Sequence[int]
) -> list[float]:
    """The log-prob (nats, temperature 1) of each token of the completion, by the model of ``models`` chosen for it."""
    said = [full_logits(model, request, completion).log_softmax(-1) for model in models]
    return [float(said[which][n, token]) for n, (which, token) in enumerate(zip(chosen, completion, strict=True))]
