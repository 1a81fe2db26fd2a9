"""Checkpoints that others wrote become ours: with the same values."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.boundary.errors import MoonflowError
from model.checkpoint import importing
from model.checkpoint.export import export, quantise_checkpoint, save_model
from model.checkpoint.file_names import CONFIG, FILES, INDEX, WEIGHTS
from model.checkpoint.folder import load_parent
from model.checkpoint.importing import LocalFolder, import_checkpoint
from model.checkpoint.load import load_image_config, load_model
from model.checkpoint.tensor_names import released_tensors, released_views
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.batches.packing import pack
from model.network.config import load_config, preset
from model.network.initial import new_model
from model.network.quantization import quantise
from tests.checkpoint.released_source import Released, draw, write
from tests.checkpoint.released_source import pack as pack_levels
from tests.codec.released_files import MORE_TEXT, reference_encode, released_ranks
from tests.corpus import small_tokenizer
from tests.drawn import sample
from tests.peers import peer_language_model


@pytest.fixture(scope="module")
def released() -> Released:
    return draw("int4")


@pytest.fixture
def source(released: Released, tmp_path: Path) -> Path:
    return write(tmp_path / "source", released)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def expected(released: Released, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the files mean, computed in float64 and rounded once; correction biases stay float32."""
    return {
        name: torch.from_numpy(values).to(torch.float32 if name.endswith("bias") and ".gate." in name else dtype)
        for name, values in released.values.items()
    }


@pytest.mark.parametrize("kind", ["int4", "bfloat16", "float32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_value_is_the_source_s(kind: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD_BYTES", (200_000, 200_000))
    released = draw(kind)
    write(tmp_path / "source", released, shards)
    imported = import_checkpoint(LocalFolder(tmp_path / "source"), tmp_path / "out")
    assert imported.precision == kind and imported.licence == "LICENSE"
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    written, wanted = stored(tmp_path / "out"), expected(released, dtype)
    assert written.keys() == wanted.keys()
    for name, value in wanted.items():
        assert written[name].dtype == value.dtype and torch.equal(written[name], value), name

    config = load_config(tmp_path / "out" / CONFIG)
    assert config == imported.config and config.quantization_config is None
    assert config.dtype == ("float32" if kind == "float32" else "bfloat16")
    assert (tmp_path / "out" / INDEX).is_file() and not (tmp_path / "out" / WEIGHTS).exists()
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    largest = max(value.nbytes for value in wanted.values())
    assert len(sizes) > 3 and max(sizes) < max(200_000, largest) + 20_000
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["weight_map"].keys() == wanted.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in wanted.values())

    parent = load_parent(tmp_path / "out", Tokenizer.of_ranks(released_ranks()))
    assert parent.training and {parameter.dtype for parameter in parent.parameters()} == {torch.float32}
    for name, value in released_tensors(parent.state_dict()).items():
        assert torch.equal(value, wanted[name].float()), name


def test_the_folder_is_one_of_ours(source: Path, tmp_path: Path) -> None:
    (source / "THIRD_PARTY_NOTICES.md").write_text("others")
    import_checkpoint(LocalFolder(source), out := tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {*FILES, WEIGHTS, "LICENSE", "THIRD_PARTY_NOTICES.md"}
    assert (out / "LICENSE").read_text() == "Modified MIT"
    assert load_image_config(out) == ImageConfig()
    text = MORE_TEXT[0] + "<|im_end|>"
    assert Tokenizer.load(out).encode(text) == reference_encode(text, released_ranks())
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [769, 770]
    assert "never run" not in "".join(path.read_text() for path in out.glob("*.py"))


def test_every_file_that_was_read_is_hashed(source: Path, tmp_path: Path) -> None:
    imported = import_checkpoint(LocalFolder(source), tmp_path / "out")
    read = {"config.json", "preprocessor_config.json", "tiktoken.model", "tokenizer_config.json", INDEX, "LICENSE"}
    read |= {path.name for path in source.glob("*.safetensors")}
    assert imported.sha256 == {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in read}
    again = import_checkpoint(LocalFolder(source), tmp_path / "again")
    assert again == imported and len(imported.revision) == 64
    (source / "LICENSE").write_text("another")
    assert import_checkpoint(LocalFolder(source), tmp_path / "other").revision != imported.revision
    (source / "LICENSE").unlink()
    assert import_checkpoint(LocalFolder(source), tmp_path / "none").licence is None


@torch.no_grad()
def test_logits_are_those_of_an_independent_dequantisation_in_float64(
    released: Released, source: Path, tmp_path: Path
) -> None:
    """transformers' DeepSeek-V3 in float64, filled with level times scale as numpy has it."""
    import_checkpoint(LocalFolder(source), tmp_path / "out")
    model = load_model(tmp_path / "out")
    exact = {name: torch.from_numpy(values) for name, values in released.values.items()}
    half = {name: value.double() for name, value in expected(released, torch.bfloat16).items()}
    batch = pack([sample(1, 40)], 1023)
    got = model(batch).double()
    errors = []
    for weights in (half, exact):
        peer = peer_language_model(model.config.text_config, weights).double()
        peer.set_experts_implementation("eager")  # its grouped products are of float32 at most
        for name, weight in released_views(peer.state_dict()):
            weight.copy_(weights[f"language_model.{name}"])
        logits = peer(input_ids=batch.input_ids_BT).logits[0]
        wanted = logits.index_select(0, batch.target_positions_N)
        assert 0.3 < wanted.std() < 5
        errors.append(float((got - wanted).abs().max()))
    # The rest of the second is bfloat16's: what a released weight stands for is rounded to it.
    assert errors[0] < 1e-4 < errors[1] < 0.1


@pytest.mark.parametrize("through_a_model", [False, True])
def test_an_export_packs_the_same_levels_again(
    released: Released, source: Path, tmp_path: Path, through_a_model: bool
) -> None:
    import_checkpoint(LocalFolder(source), tmp_path / "out")
    if through_a_model:
        save_model(load_model(tmp_path / "out"), tmp_path / "int4", "int4", torch.bfloat16)
    else:
        shutil.copytree(tmp_path / "out", tmp_path / "int4")
        quantise_checkpoint(tmp_path / "int4")
    again, same, scales = stored(tmp_path / "int4"), 0, 0
    assert again.keys() == released.tensors.keys()
    for name, value in released.tensors.items():
        if name.endswith("_scale"):
            steps = again[name].view(torch.int16).int() - value.view(torch.int16).int()
            assert again[name].dtype == torch.bfloat16 and steps.abs().max() <= 1, name
            same, scales = same + int((steps == 0).sum()), scales + value.numel()
        else:
            assert torch.equal(again[name], value), name
    assert 0.8 < same / scales < 1
    again_out = import_checkpoint(LocalFolder(_with_tokenizer(tmp_path / "int4", tmp_path / "out")), tmp_path / "twice")
    assert again_out.precision == "int4"


def test_groups_that_an_export_packs_otherwise_are_counted(tmp_path: Path) -> None:
    released = draw("int4")
    names = [name for name in released.tensors if name.endswith("_packed")]
    levels = np.tile(np.arange(32) % 15 - 7, (64, 2))  # 64 x 2 groups with 7 and -7
    levels[0, :32] = np.minimum(levels[0, :32].clip(-6), 6)
    levels[1, 5] = -8
    levels[2] = 0
    released.tensors[names[0]] = torch.from_numpy(pack_levels(levels))
    imported = import_checkpoint(LocalFolder(write(tmp_path / "source", released)), tmp_path / "out")
    assert imported.other_groups == 2
    released = draw("int4")
    assert import_checkpoint(LocalFolder(write(tmp_path / "all", released)), tmp_path / "none").other_groups == 0


def test_files_are_as_large_as_the_source_s(tmp_path: Path) -> None:
    """From 16 MiB on, unless the source's are smaller: the first file is, and decides until the next one is read."""
    text = {"vocab_size": 1024, "intermediate_size": 200_000}
    source = write(tmp_path / "source", draw("bfloat16", text=text), 3)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    import_checkpoint(LocalFolder(source), tmp_path / "out")
    written = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(written) > 1 and max(written) < max(16 << 20, *sizes) * 1.6


def _with_tokenizer(folder: Path, other: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(other / name, folder / name)
    return folder


def test_every_scale_keeps_its_levels() -> None:
    """All 128 mantissas of bfloat16: a group of all levels, rounded to bfloat16, has the same levels again."""
    scales = torch.arange(128, 256).float() / 128
    levels = torch.arange(-7, 8).repeat(3)[:32].float()
    weights = (scales[:, None].double() * levels.double()).bfloat16()
    for given in (weights, weights.float()):
        again, found = quantise(given)
        assert torch.equal(again, levels.to(torch.int8).expand_as(again))
        steps = (found.float()[:, 0] - scales) * 128
        assert steps.abs().max() == 1 and int((steps != 0).sum()) == 14
    exact = scales[:, None] * levels  # in float32, nothing is rounded
    assert torch.equal(quantise(exact)[1][:, 0], scales)


def test_an_export_of_ours_is_imported(tmp_path: Path) -> None:
    """With its tokenizer.json, in one file."""
    model = new_model(preset("tiny"), seed=3)
    export(model, small_tokenizer(), tmp_path / "export")
    imported = import_checkpoint(LocalFolder(tmp_path / "export"), tmp_path / "out")
    assert imported.precision == "float32" and imported.licence is None and imported.config == model.config
    loaded = load_parent(tmp_path / "out", small_tokenizer())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "export" / "tokenizer.json").read_bytes()


def test_tables_that_programs_compute_are_passed_over_and_biases_become_float32(tmp_path: Path) -> None:
    released = draw("bfloat16")
    tables = {f"language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(32) for n in range(3)}
    tables["vision_tower.patch_embed.pos_emb.time_weight"] = torch.ones(4, 1, 32)
    biases = {name: value.bfloat16() for name, value in released.tensors.items() if "correction" in name}
    released.tensors |= tables | biases
    import_checkpoint(LocalFolder(write(tmp_path / "source", released)), tmp_path / "out")
    written = stored(tmp_path / "out")
    assert written.keys() == released.tensors.keys() - tables.keys()
    assert len(biases) == 2
    for name, value in biases.items():
        assert written[name].dtype == torch.float32 and torch.equal(written[name], value.float())


def test_an_end_of_turn_as_the_end_of_a_text_is_read(released: Released, tmp_path: Path) -> None:
    source = write(tmp_path / "source", released)
    raw = json.loads((source / CONFIG).read_text())
    raw["eos_token_id"] = raw["text_config"]["eos_token_id"] = 770
    (source / CONFIG).write_text(json.dumps(raw))
    config = import_checkpoint(LocalFolder(source), tmp_path / "out").config
    assert config.eos_token_id == config.text_config.eos_token_id == 769
    assert (config.text_config.model_type, config.vision_config.model_type) == ("deepseek_v3", "kimi_k25_vision")


class Remote:
    """Files that are copied to a temporary place when they are opened, and gone afterwards."""

    where = "s3://bucket/kimi"

    def __init__(self, folder: Path, work: Path) -> None:
        self._folder, self._work, self.most, self.opened = folder, work, 0, []

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        path = self._work / f"download-{len(self.opened)}"
        shutil.copyfile(self._folder / name, path)
        self.opened.append(name)
        self.most = max(self.most, len(list(self._work.glob("download-*"))))
        try:
            yield path
        finally:
            path.write_bytes(b"gone")
            path.unlink()


def test_a_remote_source_is_read_a_file_at_a_time(released: Released, source: Path, tmp_path: Path) -> None:
    local = import_checkpoint(LocalFolder(source), tmp_path / "local")
    remote = Remote(source, tmp_path)
    assert import_checkpoint(remote, tmp_path / "out") == local
    assert remote.most == 1 and len(remote.opened) == len(set(remote.opened)) == len(local.sha256)
    for name, value in stored(tmp_path / "local").items():
        assert torch.equal(stored(tmp_path / "out")[name], value), name
    (source / "model-00002-of-000003.safetensors").write_bytes(b"short")
    with pytest.raises(MoonflowError, match=r"s3://bucket/kimi/model-00002-of-000003.safetensors is damaged"):
        import_checkpoint(Remote(source, tmp_path), tmp_path / "other")
    assert not list(tmp_path.glob("download-*")) and not list(tmp_path.glob("other*"))
