from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from model.checkpoint.export import save_model
from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from tests.drawn import randomise
from tests.sglang_replica import SGLangReplica


@pytest.fixture(scope="session")
def tiny_model() -> KimiK25:
    """The tiny preset with weights large enough that its samples are neither uniform nor constant."""
    torch.set_num_threads(1)
    model = new_model(preset("tiny"), seed=7).eval()
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(2.5 if parameter.dim() > 1 else 1.0)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints with other weights."""
    made = []
    for seed in range(3):
        model = new_model(preset("tiny"), seed=seed)
        randomise(model, seed, std=0.1)
        folder = tmp_path_factory.mktemp(f"weights-{seed}")
        save_model(model, folder)
        made.append(folder)
    return made


@pytest.fixture
def start(folders: list[Path]) -> Iterator[Callable[[int], list[SGLangReplica]]]:
    with ExitStack() as stack:
        yield lambda count: [stack.enter_context(SGLangReplica(folders[0])) for _ in range(count)]
