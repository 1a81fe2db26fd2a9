from __future__ import annotations

from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.data.samples.sample import Sample
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import write_shard
from model.data.samples.tokenize import tokenize
from model.data.user.listing import ListedFile
from model.data.user.user_data import UserSource, check, local_parts, parse_sources, renamed, shard_parts
from tests.corpus import small_tokenizer
from tests.data.user.odd import read_parts
from tests.samples import PNG, captioned


def test_shards_give_what_is_sound_and_name_the_rest(tmp_path: Path) -> None:
    base = {"ability": "coding", "modality": "text"}
    text = [{"type": "text", "text": "hello", "loss": True}]
    made = [Sample(f"k{n}", "f", source=f"s{n}", segments=text, **base) for n in range(4)]  # type: ignore[arg-type]
    data = write_shard(made)
    (tmp_path / "whole.tar").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"k2.json") + 300])
    samples, problems, _ = read_parts(local_parts(tmp_path))
    assert sorted(sample.key for sample in samples) == ["k0", "k0", "k1", "k2", "k3"]  # of the cut one what is certain
    assert len(problems) == 1 and "cut.tar" in problems[0]


def test_a_sound_sample_is_counted() -> None:
    found = check(captioned(), small_tokenizer(), ImageConfig())
    tokenized = tokenize(captioned(), small_tokenizer(), ImageConfig())
    assert (found.tokens, found.media) == (len(tokenized.input_ids), 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"segments": [{"type": "text", "text": "x", "loss": False}]}, "loss"),
        ({"segments": [{"type": "text"}]}, "lacks a field"),
        ({"segments": [{"type": "audio", "media": "png"}]}, "unknown segment type 'audio'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "both segments and messages"),
        ({"answer": float("inf")}, "JSON cannot hold"),
        ({"segments": []}, "neither segments nor messages"),
        ({"media": {}}, "'png' is not among its files"),
        ({"media": {"png": PNG[: len(PNG) // 2]}}, "cannot be decoded"),
    ],
)
def test_what_a_trainer_could_not_use_is_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(MoonflowError, match=words) as error:
        check(captioned(**fields), small_tokenizer(), ImageConfig())
    assert "sample k" in str(error.value)


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    for name in ("gone", "x" * 5_000, "two\nlines", "nul\0"):
        with pytest.raises(MoonflowError, match="there is no folder or file") as error:
            local_parts(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(MoonflowError, match=r"no \.tar shards, no \.jsonl files and no images"):
        local_parts(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(MoonflowError, match=r"no images.*1 file is not used \(notes\.md\)"):
        local_parts(tmp_path)


def test_sources_are_named_in_one_line() -> None:
    assert parse_sources("") == []
    assert parse_sources("cats:2.5=/data/cats, web=s3://bucket/a=b") == [
        UserSource("cats", "/data/cats", 2.5), UserSource("web", "s3://bucket/a=b", 1.0)
    ]  # fmt: skip
    for text in ("cats", "Cats=/x", "cats:0=/x", "cats:1.2.3=/x", f"cats:{10**400}=/x", "cats=", "a=/x,a=/y"):
        with pytest.raises(MoonflowError, match="source"):
            parse_sources(text)


def test_renamed_samples_keep_their_source() -> None:
    one = renamed(captioned(), "cats", 2, 7)
    assert (one.key, one.family, one.source) == ("cats-00002-00007", "cats", "cats/s")


def test_next_to_shards_every_other_file_is_named(tmp_path: Path) -> None:
    text = [{"type": "text", "text": "hello", "loss": True}]
    (tmp_path / "deep").mkdir()
    shard = write_shard([Sample("k", "f", "coding", "text", "s", segments=text)])
    for name in ("deep/a.tar", "B.TAR"):
        (tmp_path / name).write_bytes(shard)
    for name in ("._a.tar", "README.md", "c.tar.gz", "d.tgz", "e.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.tar").symlink_to("nowhere.tar")
    (tmp_path / "folder.tar").mkdir()
    samples, problems, notes = read_parts(local_parts(tmp_path))
    assert len(samples) == 2
    assert [word in line for word, line in zip(("folder.tar", "gone.tar", "c.tar.gz", "d.tgz"), problems, strict=True)]
    assert "is a broken link" in problems[1] and "compressed" in problems[2]
    assert "(README.md, e.png)" in notes[0] and "(._a.tar)" in notes[1]


def test_compressed_shards_alone_are_named() -> None:
    parts = shard_parts(LocalShards(Path("x")), [ListedFile("a.tar.gz"), ListedFile("b.md")], "s3://box/x")
    _, problems, notes = read_parts(parts)
    assert problems == ["s3://box/x/a.tar.gz is compressed: decompress it to .tar"] and "b.md" in notes[0]
    assert shard_parts(LocalShards(Path("x")), [ListedFile("b.md")], "s3://box/x") == []
