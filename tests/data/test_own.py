from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model.data.own import IMAGES, Named, check, local_parts, parse_sources, renamed
from model.data.sample import Sample
from model.data.shards import write_shard
from model.errors import MoonflowError
from model.image import ImageConfig, encode_png
from tests.corpus import small_tokenizer

PNG = encode_png(np.zeros((20, 30, 3), np.uint8))


def read(folder: Path) -> tuple[list[Sample], list[str]]:
    found = [one for part in local_parts(folder) for one in part.samples()]
    return [one for one in found if isinstance(one, Sample)], [one for one in found if isinstance(one, str)]


def test_texts_beside_images(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in (("a.png", "a cat"), ("deep/b.JPG", "a dog\n"), ("c.png", ""), ("d.png", None)):
        (tmp_path / name).write_bytes(PNG)
        if text is not None:
            (tmp_path / name).with_suffix(".txt").write_text(text)
    samples, problems = read(tmp_path)
    assert [(sample.source, sample.segments[1]["text"], list(sample.media)) for sample in samples] == [
        ("a.png", "a cat", ["png"]), ("deep/b.JPG", "a dog", ["jpg"])
    ]  # fmt: skip
    assert len(problems) == 2 and "c.txt is empty" in problems[0] and "no d.txt" in problems[1]


def test_texts_in_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
    rows = [{"file_name": "a.png", "text": "a cat", "colour": 3}, {"file_name": "gone.png", "text": "?"},
            {"file_name": "b.png"}, {"file_name": "../a.png", "text": "x"}]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n{\n")
    samples, problems = read(tmp_path)
    assert [(sample.source, sample.segments[1]["text"]) for sample in samples] == [("a.png", "a cat")]
    for problem, words in zip(problems, ("gone.png", "line 3", "outside", "line 5"), strict=True):
        assert words in problem


def test_shards_give_what_is_sound_and_name_the_rest(tmp_path: Path) -> None:
    base = {"ability": "coding", "modality": "text"}
    text = [{"type": "text", "text": "hello", "loss": True}]
    made = [Sample(f"k{n}", "f", source=f"s{n}", segments=text, **base) for n in range(4)]  # type: ignore[arg-type]
    data = write_shard(made)
    (tmp_path / "whole.tar").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"k2.json") + 300])
    samples, problems = read(tmp_path)
    assert sorted(sample.key for sample in samples) == ["k0", "k0", "k1", "k2", "k3"]  # of the cut one what is certain
    assert len(problems) == 1 and "cut.tar" in problems[0]


def sample(**fields: object) -> Sample:
    image, text = {"type": "image", "media": "png"}, {"type": "text", "text": "a cat", "loss": True}
    values = {"key": "k", "family": "f", "ability": "knowledge", "modality": "image", "source": "s",
              "segments": [image, text], "media": {"png": PNG}}  # fmt: skip
    return Sample(**{**values, **fields})  # type: ignore[arg-type]


def test_a_sound_sample_is_counted() -> None:
    tokenized, media = check(sample(), small_tokenizer(), ImageConfig())
    assert media == 2 and (tokenized.input_ids == small_tokenizer().media_pad_id).sum() == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ability": "juggling"}, "ability 'juggling'"),
        ({"modality": "smell"}, "modality 'smell'"),
        ({"segments": [{"type": "text", "text": "x", "loss": False}]}, "loss"),
        ({"segments": [{"type": "text"}]}, "lacks a field"),
        ({"segments": []}, "neither segments nor messages"),
        ({"media": {}}, "'png' is not among its files"),
        ({"media": {"png": PNG[: len(PNG) // 2]}}, "cannot be decoded"),
    ],
)
def test_what_a_trainer_could_not_use_is_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(MoonflowError, match=words) as error:
        check(sample(**fields), small_tokenizer(), ImageConfig())
    assert "sample k" in str(error.value)


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="no folder"):
        local_parts(tmp_path / "gone")
    with pytest.raises(MoonflowError, match=r"no \.tar shards and no images"):
        local_parts(tmp_path)
    assert ".png" in IMAGES


def test_sources_are_named_in_one_line() -> None:
    assert parse_sources("") == []
    assert parse_sources("cats:2.5=/data/cats, web=s3://bucket/a=b") == [
        Named("cats", "/data/cats", 2.5), Named("web", "s3://bucket/a=b", 1.0)
    ]  # fmt: skip
    for text in ("cats", "Cats=/x", "cats:0=/x", "cats:1.2.3=/x", "cats=", "a=/x,a=/y"):
        with pytest.raises(MoonflowError, match="source"):
            parse_sources(text)


def test_renamed_samples_keep_their_source() -> None:
    one = renamed(sample(), "cats", 2, 7)
    assert (one.key, one.family, one.source) == ("cats-00002-00007", "cats", "cats/s")
