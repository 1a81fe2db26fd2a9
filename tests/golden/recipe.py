"""A run of the recipe that takes seconds, step by step as a pipeline runs it, and what is recorded of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors import safe_open

from components.runtime.checkpoints.manifest import Manifest, fetch, publish
from components.runtime.step import read_metrics, run_step
from components.runtime.store.open_store import open_store
from model.checkpoint.load import load_model
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families import FAMILIES
from model.data.order.family_shares import TEXT, VISION
from model.data.samples.tokenize import tokenize_prompt
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request
from tests.tiny_folders import write_training_folder

ROWS = {"tokens_per_row": 192, "rows": 2, "checkpoint_every": 0}
STEPS: dict[str, dict[str, Any]] = {
    "vit_pretrain": {**ROWS, "preset": "tiny", "steps": 6, "projector_steps": 1, "products": "float32"},
    "joint_pretrain": {**ROWS, "steps": 6, "products": "bfloat16"},
    "joint_rl": {"iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 2, "max_new_tokens": 48},
}
PARENTS = {"joint_pretrain": "vit_pretrain", "joint_rl": "vit_pretrain"}
LAST = "joint_rl"
MEASURED = ("time", "tokens/s", "seconds/", "queue_s/")  # beginnings of metrics that no seed decides
DRAWN = ("policy/entropy",)  # of few tokens, one of which may fall otherwise on another kind of CPU
PROMPTS = ("fact_qa", "array_tool", "digit_string")  # families; the last shows an image


def recipe_figures(folder: Path) -> dict[str, Any]:
    """What the recipe gives in ``folder``, an empty one.

    ``metrics``: of each step, by its own count. The rest is of the last checkpoint: the keys of its manifest, its
    files, the shapes and types of its tensors, mean and root mean square of each weight, greedy answers to PROMPTS.
    """
    environment = {
        "MOONFLOW_STORE": f"file://{folder}/store",
        "MOONFLOW_RUN_ID": "golden",
        "MOONFLOW_RUN_DIR": str(folder / "run"),
        "MLFLOW_TRACKING_URI": "",
    }
    made: dict[str, Manifest] = {}
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    (folder / "data").mkdir()
    write_training_folder(folder / "data", sorted({*TEXT, *VISION}), count=8)
    with mock.patch.dict(os.environ, environment), mock.patch("model.train.loop.LOG_EVERY", 1):
        store = open_store()
        data = publish(store, "golden/data/0", folder / "data", run_id="golden", step="data", index=0, kind="data")
        for step, config in STEPS.items():
            inputs = {"data": data.uri}
            if step in PARENTS:
                inputs["parent"] = made[PARENTS[step]].uri
            made[step] = run_step(step, config, inputs)
            fetch(store, made[step].uri, folder / step)
            metrics[step] = {f"{row.pop('step'):g}": seeded(row) for row in read_metrics(folder / step)}
    last = made[LAST].model_dump(mode="json", by_alias=True)
    return {
        "metrics": metrics,
        "manifest": {"keys": sorted(last), "extra": sorted(last["extra"]), "training_state": last["training_state"]},
        "files": sorted(path.name for path in (folder / LAST).iterdir()),
        "tensors": {path.name: shapes(path) for path in sorted((folder / LAST).glob("*.safetensors"))},
        "weights": weights(folder / LAST / "model.safetensors"),
        "answers": dict(answers(folder / LAST)),
    }


def seeded(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics of ``row`` that are the same each time and everywhere."""
    return {name: value for name, value in sorted(row.items()) if not name.startswith(MEASURED + DRAWN)}


def shapes(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
    return {name: f"{one.get_dtype()} {one.get_shape()}" for name, one in slices.items()}


def weights(path: Path) -> dict[str, list[float]]:
    with safe_open(path, "np") as file:
        values = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return {name: [float(value.mean()), float(np.sqrt(np.square(value).mean()))] for name, value in values.items()}


def answers(folder: Path) -> Iterator[tuple[str, dict[str, list[int] | list[float]]]]:
    tokenizer, engine = Tokenizer.load(folder), EmbeddedEngine(load_model(folder).eval())
    for family in PROMPTS:
        prompt = tokenize_prompt(FAMILIES[family].sample(0, "eval", 0), tokenizer, ImageConfig())
        request = Request(prompt.input_ids.tolist(), prompt.pixel_values, prompt.grid_thws, 12, temperature=0.0)
        (completion,) = asyncio.run(engine.generate([request]))
        yield family, {"token_ids": completion.token_ids, "logprobs": completion.logprobs}
