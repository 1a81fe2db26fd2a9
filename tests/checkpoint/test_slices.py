from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.checkpoint.slices import Slice, SliceReader, as_slices, file_name, write_slices


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layers.0.q.weight/momentum": torch.randn(7, 11, generator=generator),
        "layers.0.experts.down/momentum": torch.randn(3, 5, 4, generator=generator),
        "embed.weight/exp_avg": torch.randn(13, 2, generator=generator).bfloat16(),
        "embed.weight/step": torch.tensor(17.0),
        "norm.weight/exp_avg": torch.randn(3, generator=generator),
    }


def cuts(size: int, world: int) -> list[int]:
    """Borders of ``world`` nearly equal parts; some are empty where there are fewer elements than ranks."""
    return [size * rank // world for rank in range(world + 1)]


def save(folder: Path, state: dict[str, Tensor], world: int) -> None:
    """Each rank writes its part of every tensor, as a ZeRO optimizer holds them."""
    for rank in range(world):
        slices = []
        for key, value in state.items():
            borders = cuts(value.numel(), world)
            part_n = value.reshape(-1)[borders[rank] : borders[rank + 1]]
            if part_n.numel():
                slices.append(Slice(key, tuple(value.shape), borders[rank], part_n))
        write_slices(folder, slices, rank, world)


@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("writers", [1, 4])
def test_another_number_of_ranks_reads_the_same_bits(
    tmp_path: Path, state: dict[str, Tensor], writers: int, readers: int
) -> None:
    save(tmp_path, state, writers)
    assert len(list(tmp_path.iterdir())) == writers
    with SliceReader(tmp_path) as reader:
        assert reader.shapes == {key: tuple(value.shape) for key, value in state.items()}
        for key, value in state.items():
            borders = cuts(value.numel(), readers)
            parts = [reader.read(key, a, b - a) for a, b in zip(borders, borders[1:], strict=False)]
            assert [len(part) for part in parts] == [b - a for a, b in zip(borders, borders[1:], strict=False)]
            assert torch.equal(torch.cat(parts), value.reshape(-1)) and parts[0].dtype == value.dtype
            assert torch.equal(reader[key], value)


def test_whole_tensors_and_copies_on_several_ranks(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Stage 0 holds all on every rank: one may write it all, or each its own copy."""
    for rank in range(2):
        write_slices(tmp_path, as_slices(state), rank, 2)
    with SliceReader(tmp_path) as reader:
        assert all(torch.equal(reader[key], value) for key, value in state.items())
    write_slices(tmp_path, [], 1, 2)
    with SliceReader(tmp_path) as reader:
        assert all(torch.equal(reader[key], value) for key, value in state.items())


def test_what_is_not_there_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(MoonflowError, match=f"{file_name()} is missing; choose a checkpoint with training state"):
        SliceReader(tmp_path)
    save(tmp_path, state, 4)
    with SliceReader(tmp_path) as reader:
        with pytest.raises(MoonflowError, match="no optimizer state 'other/momentum'"):
            reader.read("other/momentum")
        assert "other/momentum" not in reader and reader.get("other/momentum") is None
        with pytest.raises(MoonflowError, match=r"elements 2 to 5 of norm.weight/exp_avg, which has 3"):
            reader.read("norm.weight/exp_avg", 2, 3)
    write_slices(tmp_path, [], 1, 4)  # what rank 1 had is lost
    with SliceReader(tmp_path) as reader, pytest.raises(MoonflowError, match="were not all saved"):
        reader["layers.0.q.weight/momentum"]
    third = tmp_path / file_name(3, 4)
    third.write_bytes(third.read_bytes()[:100])
    with pytest.raises(MoonflowError, match=f"{third} cannot be read"):
        SliceReader(tmp_path)
    third.unlink()
    with pytest.raises(MoonflowError, match=f"{third} is missing"):
        SliceReader(tmp_path)
    with pytest.raises(ValueError, match="outside of"):
        write_slices(tmp_path, [Slice("x/y", (2, 2), 3, torch.zeros(2))])


def test_a_slice_is_read_without_the_rest(tmp_path: Path) -> None:
    """Reading 4 KiB of a 256 MiB tensor touches little of the file."""
    write_slices(tmp_path, as_slices({"big/momentum": torch.zeros(64 * 2**20)}))
    before = resident_bytes()
    with SliceReader(tmp_path) as reader:
        assert reader.read("big/momentum", 40 * 2**20, 1024).tolist() == [0.0] * 1024
        assert resident_bytes() - before < 32 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
