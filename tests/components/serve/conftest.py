from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import torch

from components.runtime.manifest import Manifest, describe
from components.serve.stage import serving
from model.config import preset
from model.multimodal import KimiK25
from model.train.checkpoint import save_checkpoint
from tests.tiny_folders import tiny_tokenizer, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with a manifest."""
    folder = write_checkpoint(tmp_path_factory.mktemp("serve") / "checkpoint")
    files = tuple(describe(path, folder) for path in sorted(folder.iterdir()))
    manifest = Manifest(uri="s3://b/run/parl/0", run_id="run", step="parl", index=0, kind="checkpoint", files=files)
    (folder / "manifest.json").write_bytes(manifest.canonical())
    return folder


@pytest.fixture(scope="session")
def address(checkpoint: Path) -> Iterator[str]:
    with serving(checkpoint, "moonflow", 60) as address:
        yield address


@pytest.fixture(scope="session")
def scripted_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a model that thinks "hm", says "Let me look" and searches for Lima, whatever it is asked."""
    folder = tmp_path_factory.mktemp("scripted")
    tiny_tokenizer().save(folder / "tokenizer")
    save_checkpoint(folder / "checkpoint", scripted_model(), folder / "tokenizer", None, {})
    with serving(folder / "checkpoint", "moonflow", 60) as address:
        yield address


def script() -> list[int]:
    """The tokens in their order; no two are the same, so that each tells the next."""
    tokenizer = tiny_tokenizer()
    parts = [
        "<think>", "hm", "</think>", "Let me look", "<|tool_calls_section_begin|>", "<|tool_call_begin|>",
        "functions.search:0", "<|tool_call_argument_begin|>", '{"query": "lima"}', "<|tool_call_end|>",
        "<|tool_calls_section_end|>", "<|im_end|>",
    ]  # fmt: skip
    named = [part.startswith("<") for part in parts]
    tokens = [
        token
        for part, special in zip(parts, named, strict=True)
        for token in ([tokenizer.token_id(part)] if special else tokenizer.encode(part))
    ]
    assert len(set(tokens)) == len(tokens)
    return tokens


def scripted_model() -> KimiK25:
    """The tiny network with its layers silenced: what is left, embedding and head, follows the script."""
    model = KimiK25(preset("tiny"), seed=0)
    with torch.no_grad():
        for name, parameter in model.language_model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.zero_()
        embedding, head = model.language_model.model.embed_tokens.weight, model.language_model.lm_head.weight
        head.zero_()
        for token, following in pairwise(script()):
            direction = embedding[token] / embedding[token].norm()
            head[following] = 20 * direction
    return model


@pytest.fixture
def read_metrics(address: str) -> Callable[[], dict[str, float]]:
    def read() -> dict[str, float]:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    return read
