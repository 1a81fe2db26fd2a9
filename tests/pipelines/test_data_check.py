"""`moonflow data check` as a user calls it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError
from model.codec.image import encode_png
from pipelines.cli import main
from pipelines.data_check import examine
from tests.corpus import small_tokenizer
from tests.data.user.odd import record, tar_of
from tests.pipelines.commands import moonflow
from tests.published import publish_output
from tests.tiny_folders import write_training_folder

ROOT = Path(__file__).parents[2]
Called = Callable[[Path], tuple[int, str, str]]
PAGE = (ROOT / "model" / "data" / "README.md").read_text()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Two families as prepare_data leaves them: one of text, one of images."""
    return write_training_folder(tmp_path / "data", ("recall", "digit_string"), 5)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Runs the command in this process: (exit status, stdout, stderr)."""

    def call(path: Path) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["moonflow", "data", "check", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


def test_prepared_data_is_counted_by_its_own_tokenizer(prepared: Path) -> None:
    found = examine(str(prepared))
    assert found.exact and not found.problems
    text, vision = found.tallies["recall train"], found.tallies["digit_string train"]
    assert (text.samples, vision.samples) == (5, 5)
    assert text.text >= text.longest > 0 == text.vision == text.media
    assert vision.vision > vision.media > 0 == vision.text


def test_what_is_wrong_with_prepared_data_is_named(prepared: Path) -> None:
    shard = prepared / "train" / "recall-00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    found = examine(str(prepared))
    assert found.problems and all("recall-00000.tar" in problem for problem in found.problems)
    assert "5 samples" in found.problems[-1]


def test_a_folder_of_images_from_the_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.zeros((28, 28, 3), np.uint8)))
    (tmp_path / "a.txt").write_text("nothing")
    small_tokenizer().save(tmp_path / "tokenizer")
    bad = moonflow("data", "check", str(tmp_path))
    assert bad.returncode == 1 and "no b.txt next to it" in bad.stdout and "problems: 1" in bad.stdout
    (tmp_path / "b.txt").write_text("all")
    found = examine(str(tmp_path), tmp_path / "tokenizer")
    assert found.exact and not found.problems and found.tallies["pairs"].samples == 2
    assert json.loads(found.as_json())["families"]["pairs"]["media"] == 2


def test_odd_files_are_named_and_end_nothing(tmp_path: Path, called: Called) -> None:
    png = encode_png(np.zeros((28, 28, 3), np.uint8))
    for name in ("a.png", os.fsdecode(b"caf\xe9.png"), "two\nlines.png", "c.tif"):
        (tmp_path / name).write_bytes(png)
    (tmp_path / "a.txt").write_text("nothing")
    os.mkfifo(tmp_path / "d.png")
    code, out, err = called(tmp_path)
    assert (code, err) == (1, "") and "problems: 3" in out
    for line in (r"caf\xe9.png has a name that is not UTF-8", "d.png is a FIFO", r"two\nlines.png: there is no"):
        assert sum(line in one for one in out.splitlines()) == 1
    assert f"note: {tmp_path}: 1 file is not used (c.tif)" in out
    found = json.loads(examine(str(tmp_path)).as_json())
    assert len(found["problems"]) == 3 and len(found["notes"]) == 1 and found["families"]["pairs"]["samples"] == 1


def test_notes_alone_are_no_problem(tmp_path: Path, called: Called) -> None:
    folder = tmp_path / os.fsdecode(b"[x\xe9]")
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_of(("._a.json", b"Mac"), ("a.json", record("a", family="[/x]"))))
    code, out, _ = called(folder)
    assert code == 0
    for words in ("[/x]", "note: shard a.tar: 1 member belongs", "problems: none"):
        assert words in out


def test_the_conversations_of_the_page(tmp_path: Path, called: Called) -> None:
    """The three lines that model/data/README.md shows, and three bad ones among many."""
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.partition("## Your own conversations")[2], re.DOTALL)
    assert block.count("\n") == 3
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "label.png").write_bytes(encode_png(np.zeros((28, 56, 3), np.uint8)))
    path = tmp_path / "[b]support.jsonl"
    path.write_text(block)
    code, out, err = called(path)
    assert (code, err) == (0, "") and "problems: none" in out
    assert re.search(r"conversations: 1 images or videos; [0-9]+% of the tokens are trained on; half", out)
    assert f"prepare_data.sources=mine={path}" in out and "zero_vision_sft.sources=mine=0.3" in out
    figures = examine(str(path)).tallies["conversations"].figures()
    assert (figures["samples"], figures["files"], figures["media"]) == (3, 1, 2)
    assert 0 < figures["targets"] < figures["text"] + figures["vision"]
    assert figures["median"] < figures["longest"] and figures["vision"] + figures["text"] > figures["longest"]

    path.write_text(block * 20 + "{\n" + '{"messages": [{"role": "user", "content": "x"}]}\n' + "[]\n")
    code, out, _ = called(path)
    assert code == 1 and "problems: 3" in out and "it leaves the lines named above out" in out
    for number, words in ((61, "not JSON"), (62, "it has no assistant message"), (63, "it has no messages")):
        assert sum(f"line {number}: {words}" in one for one in out.splitlines()) == 1
    path.write_text(block + "{\n")
    assert "more than 5% of the lines cannot be used" in called(path)[1]


def test_what_fits_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": "y"}]} for n in (5, 90)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert not examine(str(path)).problems
    found = examine(str(path), row=64)
    assert len(found.problems) == 1 and found.problems[0].startswith(f"{path}, line 2 has ")
    assert found.tallies["conversations"].samples == 1


def test_where_nothing_lies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match=r"no \.tar shards"):
        examine(str(tmp_path))


@pytest.mark.slow
@pytest.mark.services
def test_the_object_store(prepared: Path, store: ObjectStore, step_environment: str) -> None:
    made = publish_output(store, prepared, step_environment, "prepare_data", kind="data")
    assert examine(made.uri).tallies == examine(str(prepared)).tallies
    bare = store.uri(f"{step_environment}/bare")
    store.upload(prepared / "train" / "recall-00000.tar", f"{step_environment}/bare/x.tar")
    assert examine(bare, prepared).tallies["recall"] == examine(str(prepared)).tallies["recall train"]
    for odd in ("bare#1", "bare?x", "bare%20x", "bare x"):
        with pytest.raises(MoonflowError, match=r"no \.tar shards"):
            examine(store.uri(f"{step_environment}/{odd}"), prepared)
        store.upload(prepared / "train" / "recall-00000.tar", f"{step_environment}/{odd}/{odd}.tar")
        assert examine(store.uri(f"{step_environment}/{odd}"), prepared).tallies == examine(bare, prepared).tallies
    (prepared / "odd").write_bytes(tar_of(("a.json", record("a")), ("._b.json", b""), ("b.json", record("b", media=5))))
    for name in ("odd.tar", "._odd.tar", "odd.tar.gz", "deep/README.md"):
        store.upload(prepared / "odd", f"{step_environment}/odd/{name}")
    found = examine(store.uri(f"{step_environment}/odd"))
    assert found.tallies["f"].samples == 1 and len(found.problems) == 2 and len(found.notes) == 3
    told = ("b.json", "gz is compressed", "._b.json", "README.md", "._odd.tar")
    for line, words in zip(found.problems + found.notes, told, strict=True):
        assert words in line
    with pytest.raises(MoonflowError, match=r"no \.tar shards"):
        examine(store.uri(f"{step_environment}/nothing"))


def test_a_folders_address_is_that_folder(prepared: Path, tmp_path: Path) -> None:
    assert examine(f"file://{prepared}").tallies == examine(str(prepared)).tallies
    (tmp_path / "a%20b").mkdir()
    (tmp_path / "a%20b" / "x.tar").write_bytes((prepared / "train" / "recall-00000.tar").read_bytes())
    assert examine(f"file://{tmp_path}/a%20b", prepared).tallies["recall"].samples
    with pytest.raises(MoonflowError, match="there is no folder or file"):
        examine(f"file://{tmp_path}/a b", prepared)


@pytest.mark.slow
@pytest.mark.services
def test_conversations_in_the_object_store(store: ObjectStore, step_environment: str) -> None:
    def line(url: str) -> bytes:
        asked = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        return json.dumps({"messages": [asked, {"role": "assistant", "content": "y"}]}).encode() + b"\n"

    root = f"{step_environment}/talk"
    store.put(f"{root}/pictures/a.png", encode_png(np.zeros((28, 28, 3), np.uint8)))
    store.put(f"{step_environment}/b.png", encode_png(np.zeros((28, 28, 3), np.uint8)))
    outside = ["../../b.png", "/b.png", store.uri(f"{step_environment}/b.png"), "../pictures/c.png", ".."]
    store.put(f"{root}/chats/x.jsonl", b"".join(map(line, ["../pictures/a.png", *outside])))
    found = examine(store.uri(root))
    assert found.tallies["conversations"].figures()["files"] == 1 and len(found.problems) == len(outside)
    told = ["is outside of", "is outside of", "is an address", "is not there", "is outside of"]
    for number, (words, problem) in enumerate(zip(told, found.problems, strict=True), 2):
        assert f"chats/x.jsonl, line {number}: " in problem and words in problem
    alone = examine(store.uri(f"{root}/chats/x.jsonl"))
    assert not alone.tallies and len(alone.problems) == 6  # the picture lies beside the file's folder
