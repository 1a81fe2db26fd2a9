"""Folders of images with texts, as users have them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.data.user import listing
from model.data.user.user_data import local_parts
from tests.data.user.odd import read_parts
from tests.samples import PNG


def put(folder: Path, **files: str | bytes | None) -> None:
    """An image for each name, with its text if there is one: ``a="a cat"`` is a.png and a.txt."""
    for name, text in files.items():
        (folder / f"{name}.png").write_bytes(PNG)
        if text is not None:
            (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def rows(folder: Path, *lines: object) -> None:
    texts = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(texts))


def read(folder: Path) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(name, text) of the samples; problems; notes."""
    samples, problems, notes = read_parts(local_parts(folder))
    assert all(list(sample.media.values()) == [PNG] for sample in samples)
    return [(sample.source, sample.segments[1]["text"]) for sample in samples], problems, notes


def test_texts_next_to_images(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    put(tmp_path, a="a cat", c="", d=None, e=b"caf\xe9")
    (tmp_path / "deep" / "b.JPG").write_bytes(PNG)
    (tmp_path / "deep" / "b.TXT").write_text("a dog\r\nand a cat\n")
    samples, problems, notes = read(tmp_path)
    assert samples == [("a.png", "a cat"), ("deep/b.JPG", "a dog\nand a cat")] and not notes
    for problem, words in zip(problems, ("c.txt is empty", "no d.txt", "e.txt cannot be read"), strict=True):
        assert words in problem


def test_texts_in_metadata(tmp_path: Path) -> None:
    put(tmp_path, a=None, b=None)
    rows(tmp_path, {"file_name": "a.png", "text": "a cat", "colour": 3}, {"file_name": "gone.png", "text": "?"},
         {"file_name": "b.png"}, {"file_name": "../a.png", "text": "x"}, b"{", {"file_name": "b.png", "text": " "},
         {"file_name": 5, "text": "x"}, {"file_name": "b\0.png", "text": "x"}, {"file_name": "b" * 300, "text": "x"},
         b"[" * 100_000, b'{"file_name": "b.png", "text": "\\ud800"}', b"[1]", b"", b"caf\xe9",
         {"file_name": "", "text": "x"}, {"file_name": "b.png", "text": "b"})  # fmt: skip
    samples, problems, notes = read(tmp_path)
    assert samples == [("a.png", "a cat"), ("b.png", "b")] and not notes
    named = ("gone.png", "line 3: text: missing", "line 4 .*outside", "line 5: not JSON", "line 6 .*empty text",
             "line 7: file_name: .*string", "line 8: .*null byte", "b{300}", "line 10: .*recursion",
             "line 11: not JSON", "line 12: .*dict", "line 14: not JSON", "line 15")  # fmt: skip
    assert len(problems) == len(named)
    for problem, words in zip(problems, named, strict=True):
        with pytest.raises(MoonflowError, match=words):
            raise MoonflowError(problem)


def test_a_line_ends_at_a_line_feed_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    put(tmp_path, a=b"\xef\xbb\xbfa cat")
    assert read(tmp_path)[0] == [("a.png", "a cat")]
    put(tmp_path, b=None)
    texts = ["on\u2028two\u0085lines\x1cof", "\u00a0x\u2029y"]
    rows(tmp_path, {"file_name": "a.png", "text": texts[0]}, {"file_name": "b.png", "text": texts[1]})
    listed = tmp_path / "metadata.jsonl"
    listed.write_bytes(b"\xef\xbb\xbf" + listed.read_bytes().replace(b"\n", b"\r\n"))
    assert read(tmp_path)[:2] == ([("a.png", texts[0]), ("b.png", texts[1].strip())], [])


def test_files_that_are_not_used_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path, a="a cat", b="b")
    for name in ("c.tif", "c.txt", "d.heic", "e", "._a.png", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.png").write_bytes(PNG)
    samples, problems, (left, hidden) = read(tmp_path)
    assert len(samples) == 2 and not problems
    assert "4 files are not used (c.tif, c.txt, d.heic and 1 more)" in left and ".png" in left
    assert "3 files are not used (.DS_Store, ._a.png, .git)" in hidden
    rows(tmp_path, {"file_name": "a.png", "text": "a cat"})
    samples, problems, (left, _) = read(tmp_path)
    assert samples == [("a.png", "a cat")] and not problems
    assert "7 files are not used (a.txt, b.png, b.txt and 4 more): not listed in metadata.jsonl" in left


def test_metadata_that_is_not_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, a=None, b="b")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\n")
    (tmp_path / "train").mkdir()
    rows(tmp_path / "train", {"file_name": "../a.png", "text": "x"})
    samples, problems, notes = read(tmp_path)
    assert samples == [("b.png", "b")] and len(problems) == 1 and "no a.txt" in problems[0]
    assert "metadata.csv is not read: write its rows into metadata.jsonl" in notes[0]
    assert "train/metadata.jsonl is not read: give its folder train as another source" in notes[1]


def test_what_only_has_the_name_of_an_image_is_never_opened(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out.png"
    (folder / "deep").mkdir(parents=True)
    outside.write_bytes(PNG)
    put(folder, a="a cat", k=None, m="m")
    os.mkfifo(folder / "b.png")
    os.mkfifo(folder / "k.txt")
    (folder / "c.png").mkdir()
    put(folder / "c.png", inner="in a folder")
    (folder / "d.png").symlink_to("nowhere.png")
    (folder / "e.png").symlink_to("e.png")
    (folder / "f.png").symlink_to(outside)
    (folder / "g.png").symlink_to("a.png")
    (folder / "h.png").symlink_to("/dev/zero")
    (folder / "i").symlink_to("deep")
    (folder / os.fsdecode(b"j\xe9.png")).write_bytes(PNG)
    (folder / os.fsdecode(b"j\xe9.txt")).write_bytes(b"x")
    (folder / "l\n.png").write_bytes(PNG)
    for name in "bcdefgh":
        (folder / f"{name}.txt").write_text(name)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "n.png"))
    samples, problems, notes = read(folder)
    assert samples == [("a.png", "a cat"), ("c.png/inner.png", "in a folder"), ("g.png", "g"), ("m.png", "m")]
    named = ("b.png is a FIFO", "c.png is a folder", "d.png is a broken link",
             "e.png is a broken link", "f.png is a link out of", "h.png is a link out of",
             "i is a link to a folder", r"j\xe9.png has a name that is not UTF-8", "k.txt is a FIFO",
             "no l\\n.txt", "n.png is a socket")  # fmt: skip
    assert len(problems) == len(named) and not notes
    for problem, words in zip(problems, named, strict=True):
        assert words in problem

    # UserSource by metadata.jsonl, they are opened by name.
    rows(folder, *({"file_name": f"{name}.png", "text": name} for name in "abcdefghn"))
    samples, problems, _ = read(folder)
    assert samples == [("a.png", "a"), ("g.png", "g")] and len(problems) == 7


def test_one_text_belongs_to_one_image_and_one_row_to_one_caption(tmp_path: Path) -> None:
    put(tmp_path, cat="a cat")
    (tmp_path / "cat.jpg").write_bytes(PNG)
    samples, problems, _ = read(tmp_path)
    assert samples == [("cat.jpg", "a cat")]
    assert len(problems) == 1 and "cat.png: cat.txt is the text of cat.jpg already" in problems[0]
    rows(tmp_path, {"file_name": "cat.png", "text": "a cat"}, {"file_name": "cat.png", "text": "a grey cat"},
         {"file_name": "./cat.png", "text": "a cat "})  # fmt: skip
    samples, problems, _ = read(tmp_path)
    assert samples == [("cat.png", "a cat"), ("cat.png", "a grey cat")]
    assert len(problems) == 1 and "line 3 is the same as line 1" in problems[0]


def test_a_file_too_large_for_an_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LARGEST_FILE", 2**20)
    put(tmp_path, a="a cat", b="b")
    with (tmp_path / "b.png").open("wb") as hole:
        hole.truncate(2**40)
    samples, problems, _ = read(tmp_path)
    assert samples == [("a.png", "a cat")] and len(problems) == 1 and "b.png has more than 1 MiB" in problems[0]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metadata.jsonl")
    put(tmp_path, a="a cat")
    with pytest.raises(MoonflowError, match=r"metadata\.jsonl is a FIFO"):
        local_parts(tmp_path)
