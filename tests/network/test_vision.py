from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model.network.config import preset
from model.network.vision import MoonViT3d, PatchMergerProjector, PositionGrid, media_tokens, rope_2d, temporal_table
from tests.drawn import pixels, randomise

CONFIG = preset("tiny").vision_config
WIDTH, HEADS = CONFIG.vt_hidden_size, CONFIG.vt_num_attention_heads
MIXED = [(1, 4, 6), (1, 2, 2), (4, 2, 4), (1, 4, 6), (3, 2, 2), (1, 16, 16)]


def make() -> tuple[MoonViT3d, PatchMergerProjector]:
    tower, projector = MoonViT3d(CONFIG), PatchMergerProjector(CONFIG)
    randomise(tower, seed=1, std=0.1)
    randomise(projector, seed=2, std=0.1)
    return tower.eval(), projector.eval()


def norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def reference_positions(grid: torch.Tensor, t: int, h: int, w: int) -> torch.Tensor:
    learned = F.interpolate(grid.permute(2, 0, 1)[None], size=(h, w), mode="bicubic", align_corners=False)[0]
    rows = []
    for frame in range(t):
        sines = [math.sin(frame / 10000 ** (2 * i / WIDTH)) for i in range(WIDTH // 2)]
        cosines = [math.cos(frame / 10000 ** (2 * i / WIDTH)) for i in range(WIDTH // 2)]
        time = torch.tensor(sines + cosines, dtype=torch.float64) if t > 1 else 0.0
        rows += [learned[:, y, x] + time for y in range(h) for x in range(w)]
    return torch.stack(rows)


def reference_rotate(vector: torch.Tensor, x: int, y: int) -> torch.Tensor:
    """Complex pairs: pair 2i turns by x, pair 2i + 1 by y, both at 10000^(-4i / head size)."""
    pairs, turned = torch.view_as_complex(vector.reshape(-1, 2)), []
    for number, pair in enumerate(pairs):
        angle = (y if number % 2 else x) * 10000 ** (-4 * (number // 2) / len(vector))
        turned.append(pair * complex(math.cos(angle), math.sin(angle)))
    return torch.view_as_real(torch.stack(turned)).flatten()


def reference_medium(tower: MoonViT3d, values: torch.Tensor, grid_thw: tuple[int, int, int]) -> torch.Tensor:
    t, h, w = grid_thw
    weights = {name: value.double() for name, value in tower.state_dict().items()}
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    embedded = F.conv2d(values.double(), kernel, bias).flatten(1)
    hidden = embedded + reference_positions(weights["patch_embed.pos_emb.weight"], t, h, w)
    where = [(x, y) for _ in range(t) for y in range(h) for x in range(w)]
    for number in range(CONFIG.vt_num_hidden_layers):
        block = f"encoder.blocks.{number}"
        q, k, v = linear(weights, f"{block}.wqkv", norm(weights, f"{block}.norm0", hidden)).chunk(3, dim=-1)
        heads = []
        for part in range(HEADS):
            columns = slice(part * WIDTH // HEADS, (part + 1) * WIDTH // HEADS)
            q_head = torch.stack([reference_rotate(row[columns], *place) for row, place in zip(q, where, strict=True)])
            k_head = torch.stack([reference_rotate(row[columns], *place) for row, place in zip(k, where, strict=True)])
            heads.append((q_head @ k_head.T / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v[:, columns])
        hidden = hidden + linear(weights, f"{block}.wo", torch.cat(heads, dim=-1))
        inner = linear(weights, f"{block}.mlp.fc0", norm(weights, f"{block}.norm1", hidden))
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        hidden = hidden + linear(weights, f"{block}.mlp.fc1", inner)
    pooled = norm(weights, "encoder.final_layernorm", hidden).reshape(t, h, w, WIDTH).mean(0)
    merged = [
        torch.stack(
            [pooled[2 * y, 2 * x], pooled[2 * y, 2 * x + 1], pooled[2 * y + 1, 2 * x], pooled[2 * y + 1, 2 * x + 1]]
        )
        for y in range(h // 2)
        for x in range(w // 2)
    ]
    return torch.stack(merged)


def reference_projector(projector: PatchMergerProjector, features: torch.Tensor) -> torch.Tensor:
    weights = {name: value.double() for name, value in projector.state_dict().items()}
    inner = linear(weights, "proj.0", norm(weights, "pre_norm", features).flatten(1))
    return linear(weights, "proj.2", inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 6), (4, 2, 4), (2, 6, 2)])
def test_equals_the_reference(grid):
    tower, projector = make()
    values = pixels([grid])
    features = tower(values, [grid])
    expected = reference_medium(tower, values, grid)
    assert features.shape == (media_tokens(grid), 4, WIDTH)
    torch.testing.assert_close(features.double(), expected, atol=2e-4, rtol=1e-3)
    tokens = projector(features)
    assert tokens.shape == (media_tokens(grid), CONFIG.text_hidden_size)
    torch.testing.assert_close(tokens.double(), reference_projector(projector, expected), atol=5e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("grids", [MIXED, MIXED[::-1], [(1, 4, 4)] * 3, [(4, 2, 2)] * 2 + [(1, 4, 4)]])
def test_packed_media_have_the_features_they_have_alone(grids):
    tower, _ = make()
    values = pixels(grids)
    packed, patch, token = tower(values, grids), 0, 0
    for t, h, w in grids:
        alone = tower(values[patch : patch + t * h * w], [(t, h, w)])
        torch.testing.assert_close(packed[token : token + len(alone)], alone, atol=1e-4, rtol=1e-4)
        patch, token = patch + t * h * w, token + len(alone)
    assert token == len(packed) == sum(media_tokens(grid) for grid in grids)


def test_temporal_table_and_its_use_in_videos_only():
    table = temporal_table(4, WIDTH)
    assert table[0].tolist() == [0.0] * (WIDTH // 2) + [1.0] * (WIDTH // 2)
    for frame in (1, 3):
        for i in (0, 5, WIDTH // 2 - 1):
            angle = frame / 10000 ** (2 * i / WIDTH)
            assert float(table[frame, i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[frame, WIDTH // 2 + i]) == pytest.approx(math.cos(angle), abs=1e-6)
    grid = PositionGrid(CONFIG)
    randomise(grid, seed=0)
    with torch.no_grad():
        image, video = grid([(1, 2, 4)]), grid([(3, 2, 4)]).view(3, 8, WIDTH)
    torch.testing.assert_close(video, image + table[:3].unsqueeze(1))


def test_a_grid_of_the_learned_size_is_not_resampled():
    grid = PositionGrid(CONFIG)
    randomise(grid, seed=0)
    assert torch.equal(grid([(1, 16, 16)]), grid.weight.flatten(0, 1))


def test_rope_repeats_over_frames_and_swaps_with_the_axes():
    turns_Pe = rope_2d([(2, 3, 2)], 8, torch.device("cpu"))
    assert torch.equal(turns_Pe[:6], turns_Pe[6:])
    expected = [
        [x * f if even else y * f for f in (1.0, 0.01) for even in (True, False)] for y in range(3) for x in range(2)
    ]
    torch.testing.assert_close(turns_Pe[:6], torch.polar(torch.ones(6, 4), torch.tensor(expected)))


def test_every_weight_and_pixel_gets_a_gradient():
    tower, projector = make()
    values = pixels(MIXED).requires_grad_()
    projector(tower(values, MIXED)).square().sum().backward()
    for name, parameter in [*tower.named_parameters(), *projector.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert (values.grad.flatten(1).abs().amax(1) > 0).all()
