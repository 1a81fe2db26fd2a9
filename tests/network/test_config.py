"""Bounds of config.json, and a checkpoint whose config.json lies about its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_checked_config
from model.network.config import ModelConfig, load_config, parse_config, preset
from tests.tiny_folders import write_checkpoint


def tiny(**changes: Any) -> str:
    """config.json of the tiny preset with ``part__key=value`` changed."""
    raw = json.loads(preset("tiny").model_dump_json(exclude_none=True))
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    if any(key.startswith("text_config__rope_scaling__") for key in changes):
        raw["text_config"]["rope_scaling"] = yarn
    for path, value in changes.items():
        *parts, key = path.split("__")
        place = raw
        for part in parts:
            place = place[part]
        place[key] = value
    return json.dumps(raw)


def numbers(model: type[BaseModel], where: str) -> Iterator[tuple[str, type]]:
    """Every int and float of a part of the config, with its place."""
    for name, field in model.model_fields.items():
        if field.annotation in (int, float):
            yield f"{where}{name}", field.annotation


PARTS = {
    "": ModelConfig,
    "text_config__": ModelConfig.model_fields["text_config"].annotation,
    "vision_config__": ModelConfig.model_fields["vision_config"].annotation,
}
NUMBERS = [number for where, part in PARTS.items() for number in numbers(part, where)]  # type: ignore[arg-type]
NUMBERS += [(f"text_config__rope_scaling__{name}", kind) for name, kind in (
    ("factor", float), ("original_max_position_embeddings", int), ("beta_fast", float), ("beta_slow", float),
    ("mscale", float), ("mscale_all_dim", float),
)]  # fmt: skip


def refused(text: str, key: str) -> None:
    with pytest.raises(MoonflowError, match=r"^here/config\.json is not a usable") as raised:
        parse_config(text, "here/config.json")
    assert key in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(("path", "kind"), NUMBERS, ids=[path for path, _ in NUMBERS])
def test_every_number_of_a_config_has_bounds_and_is_refused_by_its_name(path: str, kind: type) -> None:
    key = path.rpartition("__")[2]
    values = [float("nan"), float("inf"), float("-inf"), 1e30, -(10**30), "12", True, [], 10**12]
    if key != "ignore_index":
        values += [-1]
    if kind is int:
        values += [12.5, 12.0]
    for value in values:
        if not (value == 10**12 and key == "rope_theta"):
            refused(tiny(**{path: value}), key)


def test_the_numbers_are_all_there_are() -> None:
    assert len(NUMBERS) > 45
    lax = [
        (part.__name__, name) for part in PARTS.values() for name, field in part.model_fields.items()  # type: ignore[union-attr]
        if field.annotation in (int, float) and not any(type(bound).__name__ == "Strict" for bound in field.metadata)
    ]  # fmt: skip
    assert lax == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text_config__num_hidden_layers": 200_000}, "num_hidden_layers"),
        ({"text_config__num_experts_per_tok": 9}, "num_experts_per_tok is more than n_routed_experts"),
        ({"text_config__qk_rope_head_dim": 15}, "qk_rope_head_dim"),
        ({"vision_config__merge_kernel_size": [2, 0]}, "merge_kernel_size.1"),
        ({"vision_config__merge_kernel_size": [True, 2]}, "merge_kernel_size.0"),
        ({"vision_config__vt_num_attention_heads": 3}, "a multiple of 4"),
        ({"vision_config__vt_num_attention_heads": 0}, "vt_num_attention_heads"),
        ({"text_config__use_cache": 1}, "use_cache"),
        ({"pad_token_id": 1024}, "pad_token_id is 1024, past text_config.vocab_size 1024"),
        ({"text_config__eos_token_id": 1024}, "eos_token_id is 1024, past text_config.vocab_size 1024"),
        ({"media_placeholder_token_id": 1024}, "media_placeholder_token_id is 1024"),
    ],
)
def test_what_no_network_can_have_is_refused(changes: dict[str, Any], told: str) -> None:
    refused(tiny(**changes), told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"model_type": "kimi_k25", "model_type": "kimi_k25"}', "'model_type' is given twice"),
        ('{"model_type": ' + "1" * 5000 + "}", "not JSON"),
        ("", "not JSON"),
        ("[]", "config: "),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_a_file_that_is_no_config_is_told_in_one_line(text: str, told: str) -> None:
    refused(text, told)


def test_a_file_of_megabytes_or_of_other_bytes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(tiny() + " " * (5 << 20))
    with pytest.raises(MoonflowError, match=f"{path} is not .* more than 4,194,304 bytes"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MoonflowError, match=f"{path} is not .*not JSON"):
        load_config(path)


@pytest.mark.parametrize("name", ["tiny", "small", "k25"])
def test_the_presets_and_larger_models_are_within_the_bounds(name: str) -> None:
    raw = json.loads(preset(name).model_dump_json(exclude_none=True))
    raw["text_config"] |= {"n_routed_experts": 1024, "max_position_embeddings": 2**22, "rope_theta": 50_000_000}
    raw["text_config"] |= {"num_hidden_layers": 256, "routed_scaling_factor": 1}
    assert parse_config(json.dumps(raw), "config.json").text_config.num_hidden_layers == 256


LIES = (
    {"num_hidden_layers": 100, "intermediate_size": 262_144},
    {"n_routed_experts": 4_096, "moe_intermediate_size": 262_144},
    {"vocab_size": 2_000_000},
    {"hidden_size": 65_536},
    {"vt_num_hidden_layers": 100, "vt_intermediate_size": 262_144},
)
LOADERS = """
import json, resource, sys
from pathlib import Path
from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_checked_config, load_model
from model.codec.tokenizer import Tokenizer
from model.checkpoint.folder import load_parent
folder, lies = Path(sys.argv[1]), json.loads(sys.argv[2])
tokenizer = Tokenizer.load(folder)
load_model(folder)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20),) * 2)
true = (folder / "config.json").read_text()
loaders = [load_checked_config, load_model, lambda folder: load_parent(folder, tokenizer)]
for lie in lies:
    raw = json.loads(true)
    for key, value in lie.items():
        for part in ("text_config", "vision_config"):
            raw[part] |= {name: value for name in (key, key.removeprefix("vt_")) if name in raw[part]
                          and (part == "vision_config") == key.startswith("vt_")}
    raw["vision_config"]["text_hidden_size"] = raw["text_config"]["hidden_size"]
    (folder / "config.json").write_text(json.dumps(raw))
    try:
        loaders[lies.index(lie) % 3](folder)
    except MoonflowError as error:
        print(error)
"""


def test_a_config_that_lies_is_refused_by_the_first_tensor_before_there_is_memory_for_it(tmp_path: Path) -> None:
    """In a process that can take half a GiB more, which none of the models that they ask for fits into."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    run = subprocess.run(
        [sys.executable, "-c", LOADERS, str(folder), json.dumps(LIES)], capture_output=True, text=True, check=False
    )
    told = run.stdout.splitlines()
    assert run.returncode == 0 and len(told) == len(LIES), run.stderr[-2000:]
    assert all(line.startswith(f"{folder}/model.safetensors: tensor ") for line in told)
    first = "language_model.model.layers"
    for lie, wanted in enumerate(
        (f"{first}.0.mlp.gate_proj.weight is [384, 128]", f"{first}.1.mlp.gate.weight is [8, 128]",
         "embed_tokens.weight is [1024, 128], config.json asks for [2000000, 128]", "mm_projector.proj.2.weight is",
         "vision_tower.encoder.blocks.0.mlp.fc0.weight is [256, 128]")
    ):  # fmt: skip
        assert wanted in told[lie]


def test_the_check_of_a_checkpoint_draws_no_random_numbers(tmp_path: Path) -> None:
    """What a stage draws after loading stays what it was."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    before = torch.get_rng_state()
    assert load_checked_config(folder) == load_config(folder / "config.json")
    assert torch.equal(torch.get_rng_state(), before)
