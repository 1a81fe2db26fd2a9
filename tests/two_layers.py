"""A model of two layers, and batches of several rows for it: the gradient of a batch is also computed by its parts."""

from __future__ import annotations

import torch
from torch import Tensor

from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch
from model.network.config import preset
from model.network.multimodal import KimiK25
from tests.configs import changed
from tests.drawn import noisy_model, sample
from tests.training import gradients, let_learn

CONFIG = changed(preset("tiny"), {"num_hidden_layers": 2})
WIDTH = 40  # tokens of a row

MIXED = [
    sample(0, 9, (1, 4, 6), 15),
    sample(1, 26),
    sample(2, 5, (4, 4, 4), 8, (1, 2, 2), 15),
    sample(3, 38),
    sample(4, 12),
    sample(5, 4, (1, 4, 4), 5),
    sample(6, 30),
    sample(7, 6),
]  # 5 rows, three of them with media
CASES: dict[str, list[TokenizedSample]] = {
    "media in some rows": MIXED,
    "text": [sample(10 + number, 25 + number) for number in range(7)],
    "rows without a target": [sample(20, 30), sample(21, 31), sample(22, 32, trained=False), sample(23, 33)],
    "one row": [sample(30, 20, (1, 4, 4), 10)],
}


def batch_of(case: str) -> Batch:
    return pack(CASES[case], CONFIG.pad_token_id, tokens_per_row=WIDTH)


def make(noise: float = 0.05) -> KimiK25:
    """The same model each time, all of which learns."""
    return let_learn(noisy_model(CONFIG, noise))


def loads(model: KimiK25) -> list[Tensor]:
    return [router.load_E.clone() for router in model.routers()]


def largest(model: KimiK25) -> Tensor:
    return torch.stack([one.max_logit_H for one in model.attentions() if one.max_logit_H is not None])


def assert_same_gradients(divided: KimiK25, whole: KimiK25) -> None:
    """In float64: gradients to rounding, loads of the experts to the bit."""
    wanted, found = gradients(whole), gradients(divided)
    assert wanted.keys() == found.keys() and len(wanted) > 20
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 1e-12 * float(value.norm()), name
    assert all(torch.equal(*pair) for pair in zip(loads(divided), loads(whole), strict=True))
