from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from model.data.sample import Sample
from model.data.shards import read_shard, write_shard
from model.errors import MoonflowError


def sample(number: int = 0, **fields: object) -> Sample:
    values = {"key": f"s-{number:03d}", "family": "test", "ability": "reasoning", "modality": "image", "source": "a/b"}
    return Sample(**{**values, **fields})  # type: ignore[arg-type]


SAMPLES = [
    sample(0, messages=[{"role": "user", "content": "é\n"}], answer={"a": 1}, reward="exact", tools=["search"]),
    sample(1, segments=[{"type": "image", "media": "png"}], media={"png": b"\x89PNG" * 500, "1.png": b"x"}),
    sample(2, answer=0, media={"mp4": b""}),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    data = write_shard(SAMPLES)
    assert list(read_shard(data)) == SAMPLES
    (tmp_path / "a.tar").write_bytes(data)
    assert list(read_shard(tmp_path / "a.tar")) == SAMPLES
    assert list(read_shard(write_shard([]))) == []


def test_bytes_depend_on_the_samples_alone() -> None:
    assert write_shard(SAMPLES) == write_shard(iter(SAMPLES))
    with tarfile.open(fileobj=io.BytesIO(write_shard(SAMPLES))) as tar:
        assert {(member.mtime, member.uid, member.mode) for member in tar} == {(0, 0, 0o644)}
        assert tar.getnames() == ["s-000.json", "s-001.json", "s-001.1.png", "s-001.png", "s-002.json", "s-002.mp4"]


def test_a_users_own_tar_is_read(tmp_path: Path) -> None:
    """Written by another tool: pax format, folders, media before the json, no list of media."""
    path = tmp_path / "own.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        record = {"family": "mine", "ability": "coding", "modality": "image", "source": "me", "key": "k"}
        for name, data in (("d" * 120 + "/k.png", b"pixels"), ("d" * 120 + "/k.json", json.dumps(record).encode())):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
    (read,) = read_shard(path)
    assert (read.family, read.media) == ("mine", {"png": b"pixels"})


def broken(data: bytes) -> str:
    with pytest.raises(MoonflowError) as error:
        list(read_shard(data))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_broken_shard_names_itself_and_the_member(tmp_path: Path) -> None:
    data = write_shard(SAMPLES)
    at = data.index(b"s-001.png")
    assert "s-001.png" in broken(data[: at + 700])  # cut inside a member
    assert "s-001.1.png" in broken(data[: at + 100])  # cut inside a header
    assert "s-001.1.png" in broken(data[:at])  # cut between members
    damaged = bytearray(data)
    damaged[at] ^= 1  # a header's checksum
    assert "s-001.1.png" in broken(bytes(damaged))
    path = tmp_path / "cut.tar"
    path.write_bytes(data[: at + 700])
    with pytest.raises(MoonflowError, match=r"cut\.tar.*s-001\.png"):
        list(read_shard(path))
    with pytest.raises(MoonflowError, match=r"absent\.tar"):
        list(read_shard(tmp_path / "absent.tar"))
    assert "none" in broken(b"not a tar at all" * 100)


def test_bad_samples_are_named() -> None:
    def tar_of(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    good = {"key": "k", "family": "f", "ability": "coding", "modality": "text", "source": "s"}
    assert "k.json" in broken(tar_of({"k.json": b"{"}))
    assert "JSON object" in broken(tar_of({"k.json": b"[]"}))
    assert "colour" in broken(tar_of({"k.json": json.dumps({**good, "colour": 1}).encode()}))
    assert "ability" in broken(tar_of({"k.json": b'{"key": "k", "family": "f", "modality": "text", "source": "s"}'}))
    assert "png" in broken(tar_of({"k.json": json.dumps({**good, "media": ["png"]}).encode()}))
    assert "missing" in broken(tar_of({"k.png": b"pixels"}))


def test_keys_that_would_be_read_otherwise_are_refused() -> None:
    for samples in ([sample(key="a.b")], [sample(key="")], [sample(1), sample(1)]):
        with pytest.raises(MoonflowError, match="key"):
            write_shard(samples)
