"""A checkpoint as released, with INT4 experts: transformers and compressed-tensors read the files themselves, and our
import of them gives the same logits and routes to the same experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CompressedTensorsConfig, Kimi_K25ForConditionalGeneration

from model.checkpoint.importing import LocalFolder, import_checkpoint
from model.checkpoint.load import load_model
from tests.checkpoint.released_source import BLOCKS, GRID, VISION, Released, draw, write
from tests.interop.test_transformers_model import assert_same


def small(kind: str) -> Released:
    """With the keys from which transformers takes sizes; without them it takes the released model's."""
    released = draw(kind)
    released.config["vision_config"] |= {
        "hidden_size": VISION, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 48,
        "pos_emb_height": GRID, "pos_emb_width": GRID,
    }  # fmt: skip
    released.config |= {"projection_hidden_size": VISION, "image_token_id": 789, "video_token_id": 1024}
    return released


@pytest.mark.parametrize("kind", ["int4", "bfloat16"])
def test_what_is_imported_is_what_transformers_reads(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", small(kind))
    dequantised = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if kind == "int4" else {}
    native, report = Kimi_K25ForConditionalGeneration.from_pretrained(
        source, dtype=torch.bfloat16, output_loading_info=True, **dequantised
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    import_checkpoint(LocalFolder(source), tmp_path / "out")
    # Loaded in bfloat16, which is what levels are multiplied with their scales in, and then compared in float32.
    assert_same(load_model(tmp_path / "out"), native.float().eval(), ["text", "one image", "a video chunk"])


def test_what_transformers_saves_is_imported(tmp_path: Path) -> None:
    """``save_pretrained`` of the model, next to the files that it does not write."""
    released = small("bfloat16")
    source = write(tmp_path / "source", released)
    native = Kimi_K25ForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    saved = write(tmp_path / "saved", released, 1)
    (saved / "model.safetensors").unlink()
    native.save_pretrained(saved, max_shard_size="200KB")
    assert len(list(saved.glob("model-*-of-*.safetensors"))) > 2
    ours = load_model(_imported(source, tmp_path / "ours"))
    theirs = load_model(_imported(saved, tmp_path / "theirs"))
    assert theirs.config == ours.config
    for name, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name


def _imported(source: Path, out: Path) -> Path:
    import_checkpoint(LocalFolder(source), out)
    return out
