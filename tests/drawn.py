"""Inputs of the network, weights for it and batches together; a seed decides what is random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch
from model.network.config import ModelConfig, preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.vision import GridTHW

PAD = preset("tiny").media_placeholder_token_id


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pixels(grids: Sequence[GridTHW], seed: int = 0) -> Tensor:
    """Patches of media with these grids, in the range of normalised images: [patches, 3, 14, 14]."""
    patches = sum(t * h * w for t, h, w in grids)
    return torch.rand(patches, 3, 14, 14, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sample(seed: int, *parts: int | GridTHW, trained: bool = True) -> TokenizedSample:
    """Text of the lengths given and media of the grids given, in order; the loss is of the text, if ``trained``."""
    generator = torch.Generator().manual_seed(seed)
    ids = [
        torch.randint(0, 768, (part,), generator=generator)
        if isinstance(part, int)
        else torch.full((part[1] * part[2] // 4,), PAD)
        for part in parts
    ]
    grids = [part for part in parts if not isinstance(part, int)]
    patches = sum(t * h * w for t, h, w in grids)
    pixels = torch.rand(patches, 3, 14, 14, generator=generator) if grids else None
    input_ids = torch.cat(ids)
    return TokenizedSample(input_ids, (input_ids != PAD) & trained, pixels, grids)


def text_sample(ids_T: Tensor) -> TokenizedSample:
    """These tokens, all of which have a loss."""
    return TokenizedSample(ids_T, torch.ones(len(ids_T), dtype=torch.bool), None, [])


def packed_documents(*rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Document ids and positions [B, T] of rows that hold documents of these lengths."""
    ids = torch.stack([torch.cat([torch.full((n,), d) for d, n in enumerate(row)]) for row in rows])
    return ids, torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])


def rows_together(parts: Sequence[Batch]) -> Batch:
    """One batch with the rows of all parts; the first part's keys are those of all."""
    starts, before = [], 0
    for part in parts:
        starts.append(before)
        before += part.input_ids_BT.numel()
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("input_ids_BT", "position_ids_BT", "document_ids_BT", "targets_N", "vision_N", "sample_N")
    }
    where = torch.cat([part.target_positions_N + start for part, start in zip(parts, starts, strict=True)])
    pixels = [part.pixel_values for part in parts if part.pixel_values is not None]
    grids = [grid for part in parts for grid in part.grid_thws]
    return Batch(target_positions_N=where, pixel_values=torch.cat(pixels) if pixels else None, grid_thws=grids,
                 keys=parts[0].keys, **joined)  # fmt: skip


@torch.no_grad()
def randomise(module: nn.Module, seed: int, std: float = 0.2) -> None:
    """Weights large enough that a wrong term cannot hide; norms near 1; router biases that change the choice."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else std * noise)


def random_model(config: ModelConfig, seed: int, std: float = 0.08) -> KimiK25:
    """In evaluation mode, with the weights of ``randomise``."""
    model = new_model(config)
    randomise(model, seed, std)
    return model.eval()


@torch.no_grad()
def noisy_model(config: ModelConfig, noise: float = 0.05) -> KimiK25:
    """In training mode, with initial weights that are a little off: those of experts are no longer zero."""
    model, generator = new_model(config), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model.train()
