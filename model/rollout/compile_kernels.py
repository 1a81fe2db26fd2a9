"""Compile the kernels ahead of their first use: ``python -m model.rollout.compile_kernels``, when an image is built.

The machine code is for the kind of CPU that this runs on, or that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name. On
another kind, or with other head dims than the preset's, a process compiles the kernels that it uses.
"""

from __future__ import annotations

import asyncio

import torch

from model.network.batch import Batch
from model.network.config import preset
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.kernels.numbers import FOLDER
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request

PRESET = "tiny"  # small and k25 run on GPUs, which use none of the kernels
PRODUCTS = (None, torch.float32, torch.bfloat16)  # an image runs on CPUs with and without bfloat16
TOKENS = 16


def compile_kernels() -> None:
    """Run a forward and a backward of one row, a forward without gradients and a generation, in each precision."""
    model = new_model(preset(PRESET))
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
        context = ForwardContext(products)
        model.train()
        loss = -model.logprobs(batch, context=context).float().sum() + model.auxiliary_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        model.eval()
        with torch.no_grad():
            model.logprobs(batch, context=context)
        engine = EmbeddedEngine(model, prompt_products=products)
        asyncio.run(engine.generate([Request(ids, max_new_tokens=2)]))


if __name__ == "__main__":
    compile_kernels()
    print(f"kernels compiled into {FOLDER}")
