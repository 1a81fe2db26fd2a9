"""Compile the kernels ahead of their first use: ``python -m model.kernels.compile``, as images do when they are built.

The machine code is for the kind of CPU that this runs on, or that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name. On any
other, and for heads of other dims than those of the preset that CPUs run, a process compiles what it uses itself.
"""

from __future__ import annotations

import asyncio

import torch

from model.config import preset
from model.data.packing import Batch
from model.kernels.numbers import FOLDER
from model.multimodal import KimiK25
from model.precision import products_in
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request
from model.train.engine import batch_loss

PRESET = "tiny"  # small and k25 run on GPUs, which use none of the kernels
PRODUCTS = (None, torch.bfloat16)
TOKENS = 16


def compile_kernels() -> None:
    """Train on one row, read it and generate from it, in each precision."""
    model = KimiK25(preset(PRESET))
    ids = list(range(TOKENS))
    row_BT = torch.tensor([ids])
    batch = Batch(
        input_ids_BT=row_BT,
        position_ids_BT=row_BT,
        document_ids_BT=torch.zeros_like(row_BT),
        target_positions_N=row_BT[0, :-1],
        targets_N=row_BT[0, 1:],
        vision_N=torch.zeros(TOKENS - 1, dtype=torch.bool),
        sample_N=torch.zeros(TOKENS - 1, dtype=torch.int64),
        pixel_values=None,
        grid_thws=[],
    )
    for products in PRODUCTS:
        with products_in(products):
            model.train()
            loss, _ = batch_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            model.eval()
            with torch.no_grad():
                model.logprobs(batch)
        engine = EmbeddedEngine(model, prompt_products=products)
        asyncio.run(engine.generate([Request(ids, max_new_tokens=2)]))


if __name__ == "__main__":
    compile_kernels()
    print(f"kernels compiled into {FOLDER}")
