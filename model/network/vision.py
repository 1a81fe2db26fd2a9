"""MoonViT-3D and the patch-merger projector (source: K2.5 section 2 and the released checkpoint).

Shapes: P patches of all media in order, D vision hidden, H heads, E head size, e = E / 2, X = text hidden, M merged
tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.batch import GridTHW
from model.network.config import VisionConfig
from model.network.precision import layer_norm, linear

ROPE_THETA = 10000.0


def media_tokens(grid_thw: GridTHW, merge: tuple[int, int] = (2, 2)) -> int:
    """Decoder tokens of one image or video chunk: time is pooled away, patches are merged 2 x 2."""
    _, height, width = grid_thw
    return (height // merge[0]) * (width // merge[1])


def temporal_table(frames: int, hidden: int) -> Tensor:
    """Fixed [frames, hidden] table: sines, then cosines, of the frame number; base 10000."""
    frequencies = ROPE_THETA ** -(torch.arange(hidden // 2, dtype=torch.float64) / (hidden / 2))
    angles = torch.arange(frames, dtype=torch.float64).unsqueeze(1) * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def rope_2d(grid_thws: Sequence[GridTHW], head_size: int, device: torch.device) -> Tensor:
    """cos + i sin [P, e]: pairs alternate between the column (x) and the row (y); all frames have the same."""
    frequencies = ROPE_THETA ** -(torch.arange(0, head_size, 4, dtype=torch.float32, device=device) / head_size)
    turns: dict[GridTHW, Tensor] = {}
    for frames, height, width in set(grid_thws):
        rows = torch.arange(height, device=device).repeat_interleave(width)
        columns = torch.arange(width, device=device).repeat(height)
        x, y = columns.unsqueeze(1) * frequencies, rows.unsqueeze(1) * frequencies
        angles = torch.stack((x, y), dim=-1).flatten(1).repeat(frames, 1)
        turns[frames, height, width] = torch.complex(angles.cos(), angles.sin())
    return torch.cat([turns[grid] for grid in grid_thws])


class PositionGrid(nn.Module):
    """Position embeddings [P, D]: a learned grid, resized to each medium's (h, w) by bicubic interpolation, plus the
    temporal table where a medium has more than one frame."""

    time_table: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden = config.vt_hidden_size
        self.weight = nn.Parameter(torch.empty(config.init_pos_emb_height, config.init_pos_emb_width, hidden))
        self.register_buffer("time_table", temporal_table(config.init_pos_emb_time, hidden), persistent=False)

    def forward(self, grid_thws: Sequence[GridTHW]) -> Tensor:
        grids = {(h, w): self._resized(h, w) for _, h, w in grid_thws}
        parts = []
        for frames, height, width in grid_thws:
            grid = grids[height, width]
            if frames == 1:
                parts.append(grid)
            else:
                parts.append((grid.unsqueeze(0) + self.time_table[:frames].unsqueeze(1)).flatten(0, 1))
        return torch.cat(parts)

    def _resized(self, height: int, width: int) -> Tensor:
        if (height, width) == tuple(self.weight.shape[:2]):
            return self.weight.flatten(0, 1)
        grid = self.weight.permute(2, 0, 1).unsqueeze(0)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return grid.squeeze(0).permute(1, 2, 0).flatten(0, 1)


class PatchEmbed(nn.Module):
    """[P, 3, 14, 14] pixels to [P, D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.vt_hidden_size, config.patch_size, stride=config.patch_size)
        self.pos_emb = PositionGrid(config)

    def forward(self, pixel_values: Tensor, grid_thws: Sequence[GridTHW]) -> Tensor:
        # A convolution whose kernel is the whole patch is one matrix product, and far faster as such.
        x_PD = F.linear(pixel_values.flatten(1), self.proj.weight.flatten(1), self.proj.bias)
        return x_PD + self.pos_emb(grid_thws)


class MLP(nn.Module):
    """Two linears with a tanh GELU between them, [P, D] to [P, D]."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.fc0 = nn.Linear(hidden, width)
        self.fc1 = nn.Linear(width, hidden)

    def forward(self, x: Tensor, products: torch.dtype | None = None) -> Tensor:
        return linear(F.gelu(linear(x, self.fc0, products), approximate="tanh"), self.fc1, products)


class Block(nn.Module):
    """Pre-norm block; attention is full and bidirectional within each image or 4-frame chunk."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.vt_num_attention_heads
        self.norm0 = nn.LayerNorm(config.vt_hidden_size, eps=1e-5)
        self.norm1 = nn.LayerNorm(config.vt_hidden_size, eps=1e-5)
        self.wqkv = nn.Linear(config.vt_hidden_size, 3 * config.vt_hidden_size)
        self.wo = nn.Linear(config.vt_hidden_size, config.vt_hidden_size)
        self.mlp = MLP(config.vt_hidden_size, config.vt_intermediate_size)

    def forward(
        self,
        x_PD: Tensor,
        turns_Pe: Tensor,
        groups: Sequence[tuple[int, int]],
        products: torch.dtype | None = None,
    ) -> Tensor:
        qkv = linear(layer_norm(x_PD, self.norm0, products), self.wqkv, products).to(x_PD.dtype)
        attended_PD = linear(self._attend(qkv, turns_Pe, groups), self.wo, products)
        x_PD = x_PD + attended_PD.to(x_PD.dtype)
        return x_PD + self.mlp(layer_norm(x_PD, self.norm1, products), products).to(x_PD.dtype)

    def _attend(self, qkv: Tensor, turns_Pe: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = _rotate_pairs(q, turns_Pe), _rotate_pairs(k, turns_Pe)
        sizes = [patches for patches, _ in groups]
        parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), groups, strict=True)
        return torch.cat([self._attend_equal(q, k, v, length) for q, k, v, (_, length) in parts])

    def _attend_equal(self, q_PHE: Tensor, k_PHE: Tensor, v_PHE: Tensor, length: int) -> Tensor:
        """Attention of segments of one length, as a batch: no padding and no mask."""
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q_PHE, k_PHE, v_PHE))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def _rotate_pairs(x_PHE: Tensor, turns_Pe: Tensor) -> Tensor:
    """Neighbouring features as complex numbers, times the turns. On a CPU this is several times as fast as formulas on
    strided halves, whose backward fills and copies."""
    wide = x_PHE.to(torch.promote_types(x_PHE.dtype, torch.float32))
    pairs_PHe = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs_PHe * turns_Pe.unsqueeze(1)).flatten(-2).to(x_PHE.dtype)


def by_length(grid_thws: Sequence[GridTHW]) -> tuple[list[int], list[tuple[int, int]]]:
    """The media in the order of their numbers of patches, and of each such number: (patches of these media, patches of
    one of them). Media of one length attend as one batch, so packing costs neither padding nor a mask (NaViT packing).
    """
    lengths = [t * h * w for t, h, w in grid_thws]
    order = sorted(range(len(lengths)), key=lambda medium: lengths[medium])
    return order, [(length * count, length) for length, count in sorted(Counter(lengths).items())]


class Encoder(nn.Module):
    """The blocks and the last norm, [P, D] to [P, D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_size = config.vt_hidden_size // config.vt_num_attention_heads
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vt_num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.vt_hidden_size, eps=1e-5)

    def forward(self, x_PD: Tensor, grid_thws: Sequence[GridTHW], products: torch.dtype | None = None) -> Tensor:
        order, groups = by_length(grid_thws)
        lengths = [t * h * w for t, h, w in grid_thws]
        parts = x_PD.split(lengths)
        x_PD = torch.cat([parts[medium] for medium in order])
        turns_Pe = rope_2d([grid_thws[medium] for medium in order], self.head_size, x_PD.device)
        for block in self.blocks:
            x_PD = block(x_PD, turns_Pe, groups, products)
        parts = self.final_layernorm(x_PD).split([lengths[medium] for medium in order])
        return torch.cat([part for _, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0])])


class MoonViT3d(nn.Module):
    """Pixels [P, 3, 14, 14] to merged, time-pooled features [M, 4, D]; M = sum of h/2 * w/2."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merge = config.merge_kernel_size
        self.patch_embed = PatchEmbed(config)
        self.encoder = Encoder(config)

    def forward(
        self, pixel_values: Tensor, grid_thws: Sequence[GridTHW], products: torch.dtype | None = None
    ) -> Tensor:
        x_PD = self.encoder(self.patch_embed(pixel_values, grid_thws), grid_thws, products)
        rows, columns = self.merge
        features, start = [], 0
        # Runs of media with one grid are merged together: a batch of equal images is a single reshape.
        for grid, count in _runs(grid_thws):
            t, h, w = grid
            run = x_PD[start : start + count * t * h * w]
            start += len(run)
            run = run.view(count, t, h // rows, rows, w // columns, columns, -1).mean(1)
            features.append(run.transpose(2, 3).flatten(3, 4).flatten(0, 2))
        return torch.cat(features)


def _runs(grid_thws: Sequence[GridTHW]) -> list[tuple[GridTHW, int]]:
    runs: list[tuple[GridTHW, int]] = []
    for grid in grid_thws:
        if runs and runs[-1][0] == grid:
            runs[-1] = (grid, runs[-1][1] + 1)
        else:
            runs.append((grid, 1))
    return runs


class PatchMergerProjector(nn.Module):
    """[M, 4, D] to [M, X]: a norm, the 2 x 2 patches flattened, two linears with an exact GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        rows, columns = config.merge_kernel_size
        merged = config.mm_hidden_size * rows * columns
        self.pre_norm = nn.LayerNorm(config.mm_hidden_size, eps=config.projector_ln_eps)
        self.proj = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, config.text_hidden_size))

    def forward(self, features: Tensor, products: torch.dtype | None = None) -> Tensor:
        first, gelu, last = self.proj
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        merged = layer_norm(features, self.pre_norm, products).flatten(1)
        return linear(gelu(linear(merged, first, products)), last, products)
