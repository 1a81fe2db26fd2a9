"""What is not known of a checkpoint that is imported is refused by its name, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.boundary.errors import MoonflowError
from model.checkpoint import source_weights
from model.checkpoint.file_names import CONFIG, INDEX
from model.checkpoint.importing import LocalFolder, import_checkpoint
from model.checkpoint.load import load_model
from tests.checkpoint.released_source import Released, draw, write

EXPERT = "language_model.model.layers.2.mlp.experts.3.up_proj.weight"
PROJECTION = "language_model.model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def released() -> Released:
    return draw("int4")


@pytest.fixture
def source(released: Released, tmp_path: Path) -> Path:
    return write(tmp_path / "source", released)


def refused(source: Path, tmp_path: Path) -> str:
    """The one line that an import is refused with; nothing is left of it."""
    with pytest.raises(MoonflowError) as caught:
        import_checkpoint(LocalFolder(source), tmp_path / "out")
    assert not list(tmp_path.glob("out*")) and "\n" not in str(caught.value)
    return str(caught.value)


def unpack_one(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("_packed", "_scale", "_shape"):
        del tensors[EXPERT + part]
    tensors[EXPERT] = torch.ones(64, 64)


Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update({"language_model.extra.weight": torch.ones(1)}), "language_model.extra.weight is unknown"),
        (lambda t: t.update({EXPERT + "_zero_point": torch.ones(1)}), f"{EXPERT}_zero_point is unknown"),
        (lambda t: t.update({EXPERT + "_g_idx": torch.ones(1)}), f"{EXPERT}_g_idx is unknown"),
        (lambda t: t.pop(PROJECTION), f"tensor {PROJECTION} is missing"),
        (lambda t: t.pop(EXPERT + "_scale"), f"tensor {EXPERT}_scale is missing"),
        (lambda t: t.pop(EXPERT + "_packed"), f"tensor {EXPERT}_packed is missing"),
        (lambda t: t.pop("vision_tower.encoder.blocks.1.wo.bias"), "blocks.1.wo.bias is missing"),
        (lambda t: t.update({PROJECTION: torch.ones(8, 8)}), rf"{PROJECTION} is \[8, 8\], .* asks for \[64, 256\]"),
        (lambda t: t.update({PROJECTION: t[PROJECTION].half()}), f"{PROJECTION} is of type F16; only F32 and BF16"),
        (lambda t: t.update({PROJECTION: t[PROJECTION].to(torch.float8_e4m3fn)}), f"{PROJECTION} is of type F8_E4M3"),
        (lambda t: t.update({EXPERT + "_scale": t[EXPERT + "_scale"].half()}), f"{EXPERT}_scale is of type F16"),
        (lambda t: t.update({EXPERT + "_scale": torch.ones(64, 1)}), rf"{EXPERT}_scale is \[64, 1\].*\[64, 2\]"),
        (lambda t: t.update({EXPERT + "_packed": t[EXPERT + "_packed"].long()}), f"{EXPERT}_packed is of type I64"),
        (lambda t: t.update({EXPERT + "_shape": torch.tensor([64, 32])}), f"{EXPERT}_packed .* not INT4 in groups"),
        (lambda t: t.update({EXPERT: torch.ones(64, 64)}), f"{EXPERT} is unknown; .* either all as weight, or all"),
        (unpack_one, f"{EXPERT} is unknown; .* either all as weight, or all"),
        (lambda t: t.update({PROJECTION + "_packed": torch.ones(1), PROJECTION + "_scale": torch.ones(1)}),
         f"{PROJECTION}_packed is of a quantised layer; only routed experts"),
        (lambda t: t.update({PROJECTION.replace("model.layers", "model.blocks"): torch.ones(1)}),
         "is there twice, the second time as"),
        (lambda t: t[PROJECTION].fill_(float("nan")), f"{PROJECTION} holds values that are not finite"),
        (lambda t: t[EXPERT + "_scale"].fill_(float("inf")), f"{EXPERT}_scale holds values that are not finite"),
    ],
)  # fmt: skip
def test_other_tensors_are_refused_by_name(change: Change, told: str, shards: int, tmp_path: Path) -> None:
    released = draw("int4")
    change(released.tensors)
    source = write(tmp_path / "source", released, shards)
    message = refused(source, tmp_path)
    assert message.startswith(f"{source}/model")
    assert re.search(told, message), message


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("", {"architectures": ["KimiK3ForConditionalGeneration"]}, "architecture 'KimiK3.*' is unknown; only Kimi"),
        ("", {"model_type": "kimi_vl"}, "model_type"),
        ("text_config", {"architectures": ["LlamaForCausalLM"]}, "architecture 'LlamaForCausalLM' is unknown"),
        ("text_config", {"model_type": "kimi_linear"}, "text_config.model_type"),
        ("text_config", {"scoring_func": "softmax"}, "scoring_func"),
        ("text_config", {"index_topk": 2048}, "index_topk"),
        ("vision_config", {"merge_type": "mean"}, "merge_type"),
        ("text_config", {"num_hidden_layers": 4}, "tensor language_model.model.layers.3.* is missing"),
        ("text_config", {"n_routed_experts": 3}, r"layers.1.mlp.experts.3.down_proj.* is unknown"),
        ("text_config", {"vocab_size": 2048}, r"tokenizer's vocabulary .* \(1024, 768, .*has \(2048"),
        ("weights", {"num_bits": 8}, "num_bits"),
        ("weights", {"symmetric": False}, "symmetric"),
        ("weights", {"strategy": "channel"}, "strategy"),
        ("weights", {"group_size": 128}, "group_size"),
        ("weights", {"type": "float"}, "type"),
        ("weights", {"actorder": "group"}, "actorder is 'group', which this network does not do"),
        ("weights", {"dynamic": True}, "dynamic is 'True'"),
        ("weights", {"surprise": 1}, "surprise"),
        ("group", {"input_activations": {"num_bits": 8}}, "input_activations"),
        ("group", {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'"),
        ("quantization", {"format": "int-quantized"}, "format"),
        ("quantization", {"quant_method": "fp8"}, "quant_method"),
        ("quantization", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is"),
        ("quantization", {"transform_config": {"config_groups": {"a": 1}}}, "transform_config is"),
        ("quantization", {"quantization_status": "frozen"}, "quantization_status"),
        ("text_config", {"quantization_config": None}, "stored as INT4, but quantization_config .* says nothing"),
    ],
)  # fmt: skip
def test_other_configs_are_refused_by_name(part: str, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    released = draw("int4")
    quantization = released.quantization()
    group = quantization["config_groups"]["group_0"]
    places = {"": released.config, "group": group, "weights": group["weights"], "quantization": quantization}
    places.get(part, released.config.get(part)).update(change)
    message = refused(write(tmp_path / "source", released), tmp_path)
    assert str(tmp_path / "source") in message or "tokenizer" in message
    assert re.search(told, message), message


def test_int4_in_the_config_alone_is_refused(tmp_path: Path) -> None:
    released = draw("bfloat16")
    released.config["quantization_config"] = draw("int4").quantization()
    message = refused(write(tmp_path / "source", released), tmp_path)
    assert "stored as weight, but quantization_config in config.json says INT4" in message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "source has no config.json; fetch the whole checkpoint"),
        ("preprocessor_config.json", "source has no preprocessor_config.json"),
        ("tiktoken.model", "source has no tokenizer, neither tiktoken.model nor tokenizer.json"),
        ("tokenizer_config.json", "source has no tokenizer_config.json"),
        ("model.safetensors.index.json", "source has neither model.safetensors nor model.safetensors.index.json"),
        ("model-00002-of-000003.safetensors", "names 'model-00002-of-000003.safetensors', which is not there"),
    ],
)
def test_a_missing_file_is_named(name: str, told: str, source: Path, tmp_path: Path) -> None:
    (source / name).unlink()
    assert told in refused(source, tmp_path)


def test_a_damaged_file_is_named(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00003-of-000003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert f"{shard} is damaged" in refused(source, tmp_path)
    tensors = load_file(source / "model-00001-of-000003.safetensors")
    dropped = tensors.pop(sorted(tensors)[0])
    assert dropped is not None
    save_file(tensors, source / "model-00001-of-000003.safetensors")
    assert "is missing; fetch the file again" in refused(source, tmp_path)
    shard.write_bytes(whole)
    (source / INDEX).write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    assert "names '../elsewhere.safetensors', which is not there" in refused(source, tmp_path)
    (source / INDEX).write_text("{")
    assert f"{source / INDEX} is damaged" in refused(source, tmp_path)
    (source / CONFIG).write_text("[1]")
    assert f"{source / CONFIG} is not a usable model config" in refused(source, tmp_path)


def test_images_that_are_cut_otherwise_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "preprocessor_config.json").write_text('{"media_proc_cfg": {"patch_size": 7}}')
    assert "preprocessor_config.json cuts patches of 7 pixels" in refused(source, tmp_path)


def test_a_folder_that_holds_something_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(MoonflowError, match="out holds something already"):
        import_checkpoint(LocalFolder(source), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(MoonflowError, match="no checkpoint folder at"):
        LocalFolder(tmp_path / "nowhere")


def test_what_a_killed_import_left_is_replaced(source: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.unfinished"
    left.mkdir()
    (left / "00001.unfinished").write_text("half")
    (tmp_path / "out").mkdir()
    import_checkpoint(LocalFolder(source), tmp_path / "out")
    assert not left.exists() and load_model(tmp_path / "out") is not None


def test_names_from_a_file_are_one_short_line(tmp_path: Path) -> None:
    released = draw("bfloat16")
    released.tensors["a\nb\x1b[2J" + "x" * 100_000] = torch.ones(1)
    for shards in (1, 2):
        message = refused(write(tmp_path / f"source{shards}", released, shards), tmp_path)
        assert "tensor a?b?[2Jxxx" in message and "\x1b" not in message and len(message) < 500


def test_parts_of_int4_that_lie_far_apart_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released, source = draw("int4"), tmp_path / "source"
    write(source, released, 2)
    late = {name for name in released.tensors if name.endswith("_scale")}
    index: dict[str, dict[str, str]] = {"metadata": {}, "weight_map": {}}
    for number, names in enumerate((sorted(released.tensors.keys() - late), sorted(late)), 1):
        file = f"model-{number:05d}-of-000002.safetensors"
        save_file({name: released.tensors[name] for name in names}, source / file)
        index["weight_map"] |= dict.fromkeys(names, file)
    (source / INDEX).write_text(json.dumps(index))
    import_checkpoint(LocalFolder(source), tmp_path / "all")
    waiting = sum(value.nbytes for name, value in released.tensors.items() if name.endswith(("_packed", "_shape")))
    monkeypatch.setattr(source_weights, "WAITING_BYTES", waiting - 1)
    told = refused(source, tmp_path)
    assert "model-00001-of-000002.safetensors: tensor language_model.model.layers.1.mlp.experts.0.down_proj" in told
    assert f"more than {waiting - 1:,} bytes" in told
    monkeypatch.setattr(source_weights, "WAITING_BYTES", waiting)
    import_checkpoint(LocalFolder(source), tmp_path / "again")


def cached(source: Path, at: Path) -> Path:
    """The folder as huggingface_hub's cache keeps it: a snapshot of links to the blobs."""
    snapshot, blobs = at / "snapshots" / "c0ffee", at / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


@pytest.mark.parametrize("cache", [False, True])
def test_a_link_to_outside_of_the_folder_is_not_followed(cache: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("the user's own")
    if cache:
        source = cached(source, tmp_path / "models--owner--name")
    (source / "LICENSE").unlink()
    (source / "LICENSE").symlink_to(tmp_path / "private" / "key")
    assert refused(source, tmp_path).startswith(f"{source}/LICENSE is a link to outside of the folder")
    (source / "LICENSE").unlink()
    (source / "LICENSE").symlink_to("TERMS")
    (source / "TERMS").write_text("terms")
    import_checkpoint(LocalFolder(source), tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms" and not (tmp_path / "out" / "LICENSE").is_symlink()


def test_blobs_that_are_a_link_themselves_are_not_a_cache(source: Path, tmp_path: Path) -> None:
    snapshot = cached(source, tmp_path / "cache")
    (tmp_path / "cache" / "blobs").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "blobs").symlink_to(tmp_path / "elsewhere")
    assert "config.json is a link to outside" in refused(snapshot, tmp_path)


def test_a_licence_of_many_megabytes_is_refused(source: Path, tmp_path: Path) -> None:
    with (source / "NOTICE").open("wb") as stream:
        stream.truncate((4 << 20) + 1)
    assert f"{source}/NOTICE has more than 4,194,304 bytes" in refused(source, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tiktoken.model"])
def test_a_file_that_cannot_be_read_is_told(name: str, source: Path, tmp_path: Path) -> None:
    class Unreadable(LocalFolder):
        """Gives a folder for a file: opening it fails, also for root, who may read any file."""

        @contextmanager
        def open(self, asked: str) -> Iterator[Path]:
            yield source if asked == name else source / asked

    with pytest.raises(MoonflowError, match=rf"{source}/{name} cannot be read \(Is a directory\)"):
        import_checkpoint(Unreadable(source), tmp_path / "out")
