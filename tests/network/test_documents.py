from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from model.network import attention
from model.network.attention import MultiheadLatentAttention, Rotary
from model.network.config import preset
from model.network.documents import Documents
from tests.drawn import draw, randomise
from tests.long_forward import LONG_FORWARD

TINY = preset("tiny").text_config


def test_segments_by_hand() -> None:
    documents = Documents.of(torch.tensor([[0, 0, 1, -1, -1], [0, 1, 2, 2, 2]]))
    assert documents.segments == [(0, 0, 2), (0, 2, 3), (0, 3, 5), (1, 0, 1), (1, 1, 2), (1, 2, 5)]
    assert not documents.whole_rows
    assert documents.first_BT.tolist() == [[0, 0, 2, 3, 3], [0, 1, 2, 2, 2]]


def test_whole_rows_are_rows_of_one_document() -> None:
    whole, packed = Documents(2, 4, torch.device("cpu")), Documents.of(torch.zeros(2, 4, dtype=torch.long))
    assert whole.whole_rows and whole.segments == packed.segments == [(0, 0, 4), (1, 0, 4)]
    assert torch.equal(whole.mask_B1TT, packed.mask_B1TT) and torch.equal(whole.first_BT, packed.first_BT)


@pytest.mark.parametrize("ids", [None, [[0] * 9 + [1] * 20 + [-1] * 3, [0] * 32]])
def test_rows_without_a_mask_attend_as_masked_ones(ids: list[list[int]] | None, monkeypatch) -> None:
    layer = MultiheadLatentAttention(TINY).double().eval()
    randomise(layer, seed=3)
    x = draw(2, 32, TINY.hidden_size, dtype=torch.float64).requires_grad_()
    rotation = [part.double() for part in Rotary(TINY)(torch.arange(32).repeat(2, 1))]
    masked = Documents.of(torch.zeros(2, 32, dtype=torch.long) if ids is None else torch.tensor(ids))
    expected = layer(x, *rotation, masked)
    monkeypatch.setattr(attention, "LONGEST", 16)  # rows longer than that go document by document
    got = layer(x, *rotation, Documents(2, 32, x.device) if ids is None else Documents.of(torch.tensor(ids)))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-9)
    cotangent = torch.randn_like(got)
    wanted = torch.autograd.grad(expected, [x, layer.kv_b_proj.weight], cotangent)
    for ours, theirs in zip(torch.autograd.grad(got, [x, layer.kv_b_proj.weight], cotangent), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)


@pytest.mark.slow
def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """A mask of 16,384 tokens alone would be 256 MiB, their logits 64 MiB."""
    taken = []
    for tokens in (4096, 16384):
        done = subprocess.run(
            [sys.executable, "-c", LONG_FORWARD, str(tokens)], capture_output=True, text=True, check=True
        )
        taken.append(int(done.stdout))
    assert taken[1] < 5 * taken[0] and taken[1] < 400 << 20, f"{[bytes_ >> 20 for bytes_ in taken]} MiB"
