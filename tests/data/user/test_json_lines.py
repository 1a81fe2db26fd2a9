"""Files of conversations: how they are cut, which lines are named, and which images they may show."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.codec.image import encode_png
from model.data.samples.sample import Sample
from model.data.user import json_lines
from model.data.user.json_lines import Lines
from model.data.user.listing import ListedFile
from model.data.user.user_data import conversations, line_of, local_parts
from tests.data.user.odd import read_parts

PNG = encode_png(np.zeros((20, 30, 3), np.uint8))


def line(question: str, url: str = "", **more: object) -> bytes:
    shown = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
    return json.dumps({"messages": [asked, {"role": "assistant", "content": "yes"}], **more}).encode() + b"\n"


def read(path: Path) -> tuple[list[Sample], list[str], list[str]]:
    return read_parts(local_parts(path))


def questions(samples: list[Sample]) -> list[str]:
    return [sample.messages[0]["content"][-1]["text"] for sample in samples]


def test_a_file_and_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line("one") + b"\r\n  \n" + line("two", id=3)[:-1])
    (tmp_path / "deep" / "B.JSONL").write_bytes(line("three").replace(b"\n", b"\r\n"))
    (tmp_path / "notes.md").write_text("x")
    samples, problems, notes = read(tmp_path / "a.jsonl")
    assert questions(samples) == ["one", "two"] and not problems
    assert notes == [f"{tmp_path}/a.jsonl: of a line, only messages and tools are read, not id"]
    samples, problems, notes = read(tmp_path)
    assert questions(samples) == ["one", "two", "three"] and not problems
    assert [sample.key for sample in samples] == ["00000-00000001", "00000-00000004", "00001-00000001"]
    assert "(notes.md)" in notes[1] and len(notes) == 2
    assert line_of("mine-00001-00000001", ["a.jsonl", "deep/B.JSONL"]) == "deep/B.JSONL, line 1"
    assert line_of("cats-00000-00001", []) == "cats-00000-00001"


def test_each_bad_line_is_named_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(line("one") + b"{\n\n" + b"\x00\xff\n" + line("two", "no.png") + line("three"))
    samples, problems, _ = read(path)
    assert questions(samples) == ["one", "three"]
    assert [problem.startswith(f"{path}, line {n}: ") for n, problem in zip((2, 4, 5), problems, strict=True)]
    assert "not JSON" in problems[0] and "'no.png' cannot be read (No such file or directory)" in problems[2]


def test_images_come_from_the_folder_and_from_nowhere_else(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for folder in ("own/chats", "own/pictures", "own2", "out"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("own/chats/a.png", "own/pictures/b.png", "own2/c.png", "out/d.png"):
        (tmp_path / name).write_bytes(PNG)
    (own / "out.png").symlink_to(tmp_path / "out" / "d.png")
    (own / "in.png").symlink_to(own / "pictures" / "b.png")
    (own / "linked").symlink_to(tmp_path / "out")
    (own / "broken.png").write_bytes(PNG[:20])
    os.mkfifo(own / "fifo.png")
    inside = ["a.png", "./a.png", "../pictures/b.png", f"{own}/pictures/b.png", f"{own}/chats/../in.png"]
    outside = ["../../out/d.png", f"{tmp_path}/own2/c.png", "../out.png", "../linked/d.png", "/etc/passwd", "../.."]
    odd = ["../fifo.png", "../broken.png", "../pictures", "a\0.png", "x" * 5000, "file:///etc/passwd", "\u00e9.png"]
    urls = inside + outside + odd
    (own / "chats" / "x.jsonl").write_bytes(b"".join(line(str(n), url) for n, url in enumerate(urls)))
    samples, problems, _ = read(own)
    assert questions(samples) == [str(n) for n in range(len(inside))]
    assert all(list(sample.media.values()) == [PNG] for sample in samples)
    assert problems.pop() == f"{own}/linked is a link to a folder: put the folder in its place"
    assert len(problems) == len(outside) + len(odd)
    assert all("is outside of the folder" in problem for problem in problems[: len(outside)])


def test_a_file_that_is_named_alone_shows_the_images_of_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b.png").write_bytes(PNG)
    (tmp_path / "a" / "x.jsonl").write_bytes(line("one", "../b.png"))
    assert "is outside of the folder" in read(tmp_path / "a" / "x.jsonl")[1][0]
    assert len(read(tmp_path)[0]) == 1


@given(st.lists(st.sampled_from([b"", b"x", line("a"), line("b" * 90)]), max_size=12), st.integers(1, 200))
@settings(deadline=None, max_examples=80)
def test_parts_of_any_size_hold_every_line_once(tmp_path_factory, lines: list[bytes], size: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    path.write_bytes(b"\n".join(one.removesuffix(b"\n") for one in lines))
    expected = [n for n, one in enumerate(lines, 1) if one.startswith(b"{")]
    bad = [n for n, one in enumerate(lines, 1) if one == b"x"]
    before, json_lines.PART_BYTES = json_lines.PART_BYTES, size
    try:
        parts = local_parts(path)
        samples, problems, _ = read_parts(pickle.loads(pickle.dumps(parts)))
    finally:
        json_lines.PART_BYTES = before
    assert [int(sample.key[-8:]) for sample in samples] == expected
    assert [int(problem.partition(", line ")[2].partition(":")[0]) for problem in problems] == bad
    assert size > 100 or len(parts) >= path.stat().st_size // 250


def test_what_is_no_text_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line("one")))
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(line("one")))
    (tmp_path / "c.jsonl").mkdir()
    (tmp_path / "d.jsonl").symlink_to("gone.jsonl")
    (tmp_path / ".e.jsonl").write_bytes(b"x")
    samples, problems, _ = read(tmp_path)
    assert not samples and len(problems) == 4
    for words in (
        "a.jsonl.gz is compressed",
        "b.jsonl is compressed (gzip)",
        "c.jsonl is a folder",
        "is a broken link",
    ):
        assert sum(words in problem for problem in problems) == 1
    monkeypatch.setattr(json_lines, "MOST_BAD", 3)
    (tmp_path / "f.jsonl").write_bytes(b"x\n" * 9)
    problems = read(tmp_path / "f.jsonl")[1]
    assert len(problems) == 4 and "3 lines up to here cannot be used" in problems[3]


def test_a_folder_that_is_not_looked_into_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "more").mkdir()
    for name in ("own/a.jsonl", "more/b.jsonl"):
        (tmp_path / name).write_bytes(line("one"))
    for name in ("linked", "x.jsonl", "x.png", ".hidden"):
        (tmp_path / "own" / name).symlink_to(tmp_path / "more")
    samples, problems, notes = read(tmp_path / "own")
    told = "is a link to a folder: put the folder in its place"
    assert sorted(problems) == [f"{tmp_path}/own/{name} {told}" for name in ("linked", "x.jsonl", "x.png")]
    assert len(samples) == 1 and not notes
    unreadable = ListedFile("deep", "cannot be read (Permission denied): change its permissions", hides=True)
    parts = conversations("there", [ListedFile("a.jsonl"), unreadable, ListedFile("b.md")], lambda _: iter([]))
    _, problems, notes = read_parts(parts)
    assert problems == ["there/deep cannot be read (Permission denied): change its permissions"]
    assert len(notes) == 1 and "1 file is not used (b.md)" in notes[0]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(line("one"))
    with pytest.raises(MoonflowError, match=r"a\.json is a file, but no \.jsonl file"):
        local_parts(tmp_path / "a.json")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.jsonl").write_bytes(line("one"))
    assert not any(isinstance(part, Lines) for part in local_parts(tmp_path))  # a folder of images, as before


READ = """
import resource, sys
from pathlib import Path
from model.data.samples.sample import Sample
from model.data.user.user_data import local_parts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = problems = 0
for part in local_parts(Path(sys.argv[1])):
    for found in part.samples():
        samples += isinstance(found, Sample)
        problems += not isinstance(found, Sample)
print(samples, problems, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_and_a_huge_line_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        for _ in range(25):
            out.write(line("long " * 200_000))  # 25 MB
        out.write(b'{"messages": "' + b"x" * 50_000_000 + b'"}\n')
        out.write(line("last"))
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", READ, str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=120)
    samples, problems, kilobytes = map(int, shown.stdout.split())
    assert (samples, problems) == (26, 1) and kilobytes < 150_000
