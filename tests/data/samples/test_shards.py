from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.data.samples.sample import Sample
from model.data.samples.shard_source import BrokenShard, LocalShards
from model.data.samples.shards import Shard, ShardWriter, write_shard
from tests.data.user.odd import record, tar_of
from tests.samples import make_sample
from tests.shards import read_shard


def sample(number: int = 0, **fields: object) -> Sample:
    return make_sample(**{"key": f"s-{number:03d}", "source": "a/b", **fields})


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
    assert "k.json" in broken(tar_of(("k.json", b"{")))
    assert "JSON object" in broken(tar_of(("k.json", b"[]")))
    assert "colour" in broken(tar_of(("k.json", record("k", colour=1))))
    assert "ability" in broken(tar_of(("k.json", record("k", ability=None))))
    assert "png" in broken(tar_of(("k.json", record("k", media=["png"]))))
    assert "missing" in broken(tar_of(("k.png", b"pixels")))


def test_keys_that_would_be_read_otherwise_are_refused() -> None:
    for samples in ([sample(key="a.b")], [sample(key="")], [sample(1), sample(1)]):
        with pytest.raises(MoonflowError, match="key"):
            write_shard(samples)


def test_a_sample_that_cannot_be_written_leaves_no_trace() -> None:
    writer = ShardWriter()
    writer.add(SAMPLES[0])
    for bad in (sample(5, answer=float("inf")), sample(6, answer="\ud800"), sample(7, media={"x" * 200: b""})):
        with pytest.raises((MoonflowError, ValueError)):
            writer.add(bad)
    writer.add(SAMPLES[1])
    assert len(writer) == 2 and writer.content() == write_shard(SAMPLES[:2])


def found(data: bytes) -> tuple[list[str], list[str], list[str]]:
    """Sources of the samples that are read, what is said of the others, what is skipped."""
    shard = Shard(io.BytesIO(data), "odd.tar")
    sources, problems = [], []
    for number in range(len(shard)):
        try:
            sources.append(shard[number].source)
        except MoonflowError as error:
            problems.append(str(error))
    if shard.damage is not None:
        problems.append(str(shard.damage))
    assert all("odd.tar" in problem and "\n" not in problem for problem in problems)
    return sources, problems, list(shard.skipped)


def test_what_systems_add_to_archives_is_skipped() -> None:
    mac = [("._a.json", b"Mac"), ("__MACOSX/a.png", b"Mac"), (".DS_Store", b"Mac"), ("README", b"about")]
    data = tar_of(mac[0], ("a.json", record("a")), *mac[1:], ("a.png", b"x"), ("./b.json", record("b")), ("b.png", b""))
    sources, problems, skipped = found(data)
    assert (sources, problems, skipped) == (["s/a", "s/b"], [], [name for name, _ in mac])


def test_members_that_no_record_names_are_told_once_the_sample_is_read() -> None:
    show = [{"type": "image", "media": "png"}, {"type": "text", "text": "x", "loss": True}]
    beside = [(f"a.{extension}", b"x") for extension in ("png", "jpg", "txt")]
    listed = tar_of(("a.json", record("a", segments=show, media=["jpg"])), *beside)
    assert found(listed) == (["s/a"], [], ["a.txt"])
    assert found(tar_of(("a.json", record("a", segments=show)), *beside)) == (["s/a"], [], [])  # all are its media


def test_of_a_key_that_occurs_again_the_first_sample_stays() -> None:
    a, a_png, b = ("a.json", record("a")), ("a.png", b"x"), ("b.json", record("b"))
    for members in ((a, a_png, a, a_png, b), (a, a_png, b, a, a_png), (a_png, a, a_png, a, b), (a, b, a_png)):
        sources, problems, _ = found(tar_of(*members))
        assert sorted(sources) == ["s/a", "s/b"]
        assert len(problems) == 1 and "key 'a' occurs again" in problems[0]


def test_archives_one_after_the_other_are_all_read() -> None:
    first, second = tar_of(("a.json", record("a"))), tar_of(("b.json", record("b")))
    assert found(first + second + bytes(3 * 2**20) + tar_of(("c.json", record("c"))))[:2] == (["s/a", "s/b", "s/c"], [])
    sources, problems, _ = found(first + b"no tar " * 1000)
    assert sources == ["s/a"] and len(problems) == 1 and "after member 'a.json'" in problems[0]


def special(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (special("a.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "link"),
        (special("a.png", tarfile.LNKTYPE, linkname="b.json"), "link"),
        (special("a.png", tarfile.FIFOTYPE), "device"),
        (special("a.png", tarfile.CHRTYPE), "device"),
        (special("a.png", tarfile.REGTYPE, pax_headers={"GNU.sparse.size": "9", "GNU.sparse.map": "0,0"}), "sparse"),
        (special("a.caf\udce9", tarfile.REGTYPE), "not UTF-8"),
    ],
)
def test_members_that_are_no_plain_files_are_their_samples_problem(member: tarfile.TarInfo, words: str) -> None:
    sources, problems, _ = found(tar_of(("a.json", record("a")), member, ("b.json", record("b"))))
    assert sources == ["s/b"] and len(problems) == 1 and words in problems[0]


@pytest.mark.parametrize(
    "headers",
    [{"size": "-1024"}, {"size": "9" * 30}, {"GNU.sparse.map": "x", "GNU.sparse.size": "y"}, {"GNU.sparse.major": "1"},
     {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "n", "GNU.sparse.realsize": "z"}],
)  # fmt: skip
def test_headers_without_sense_are_damage_and_what_lies_before_stays(headers: dict[str, str]) -> None:
    odd = special("d.json", tarfile.REGTYPE, pax_headers=headers)
    sources, problems, _ = found(tar_of(("a.json", record("a")), ("b.json", record("b")), odd, ("c.json", record("c"))))
    assert sources[:1] == ["s/a"] and len(problems) == 1


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_archive_is_named(mode: str, name: str) -> None:
    sources, (problem,), _ = found(tar_of(("a.json", record("a")), mode=mode))
    assert not sources and name in problem and "decompress" in problem


def test_a_shard_that_is_no_regular_file_is_broken_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "folder.tar").mkdir()
    for name in ("fifo.tar", "folder.tar"):
        with pytest.raises(BrokenShard, match=rf"{name} cannot be read \(it is not a regular file\)"):
            LocalShards(tmp_path).open(name)
