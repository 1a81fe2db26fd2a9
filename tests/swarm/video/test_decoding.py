"""Real decoder processes read good, odd and broken files; all are asked once, for all tests."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from model.swarm.video.decoder_server import Child, reap
from model.swarm.video.decoding import Clip, Decoder, Header, Undecodable
from tests.odd_media import noise, video

FPS = 10
SCENES = {"red": (0, 20), "grey": (20, 45), "blue": (45, 60)}  # numbers of the frames
COLOURS = {"red": (220, 20, 20), "grey": (128, 128, 128), "blue": (10, 10, 200)}


def three_scenes(height: int = 36, width: int = 64) -> list[np.ndarray]:
    """Six seconds; a little noise, so that no two frames are the same."""
    made = []
    for name, (start, end) in SCENES.items():
        for number in range(start, end):
            made.append((noise(height, width, 3, seed=number) // 16 + np.array(COLOURS[name])).clip(0, 255))
    return [frame.astype(np.uint8) for frame in made]


def uneven(seconds: list[int]) -> bytes:
    """A video whose frames come at these seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = 36, 64, "yuv420p", 1
        for at in seconds:
            frame = av.VideoFrame.from_ndarray(noise(36, 64, 3, seed=at), format="rgb24").reformat(format="yuv420p")
            frame.pts = at
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def patched(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """An MP4 with another 32-bit number, ``offset`` bytes after each name of a box."""
    changed, at = bytearray(data), data.find(box)
    while at >= 0:
        changed[at + offset : at + offset + 4] = value.to_bytes(4, "big")
        at = data.find(box, at + 4)
    return bytes(changed)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Case -> what the decoder said of a file, or of a part of it; an error as its text."""
    folder = tmp_path_factory.mktemp("videos")
    good = video(three_scenes(), fps=FPS)
    damaged = bytearray(good)
    damaged[len(good) // 3 : len(good) // 3 + 300] = noise(300).tobytes()
    endless = patched(patched(patched(good, b"mvhd", 20, 2**31 - 1), b"tkhd", 24, 2**31 - 1), b"mdhd", 20, 2**31 - 1)
    files = {
        "good": good,
        "turned": video(three_scenes(), fps=FPS, turned=90),
        "streamed": video(three_scenes(), kind="matroska", fps=FPS, live="1"),
        "endless": endless,
        "uneven": uneven([0, 1, 100, 1000]),
        "damaged": bytes(damaged),
        "truncated": good[: len(good) // 2],
        "a billion frames": patched(patched(good, b"stsz", 8, 1), b"stsz", 12, 10**9),
        "a list of files": b"ffconcat version 1.0\nfile /etc/hostname\n",
        "a text": b"hello " * 1000,
        "empty": b"",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "a pipe")

    async def ask(decoder: Decoder, name: str, *part: Any) -> Header | Clip | str:
        try:
            return await (decoder.clip(folder / name, *part) if part else decoder.header(folder / name))
        except Undecodable as error:
            return str(error)

    async def ask_all() -> dict[str, Any]:
        async with Decoder() as decoder:
            found: dict[str, Any] = {name: await ask(decoder, name) for name in [*files, "a pipe", "missing"]}
            for count in (1, 3, 8):
                found[f"{count} frames"] = await ask(decoder, "good", 0.0, 6.0, count, 32)
            found["second part"] = await ask(decoder, "good", 3.0, 6.0, 2, 4096)
            found["turned part"] = await ask(decoder, "turned", 0.0, 1.0, 1, 32)
            found["still"] = await ask(decoder, "uneven", 200.0, 300.0, 4, 32)
            found["late frame"] = await ask(decoder, "uneven", 90.0, 120.0, 4, 32)
            found["damaged part"] = await ask(decoder, "damaged", 0.0, 6.0, 8, 32)
        async with Decoder(cpu_s=0.001) as decoder:
            found["no time"] = await ask(decoder, "good", 0.0, 6.0, 8, 32)
            found["no time for a header"] = await ask(decoder, "good")
        return found

    yield asyncio.run(ask_all())


def test_frames_are_those_that_begin_the_scenes(told: dict[str, Any]) -> None:
    assert told["good"] == Header(seconds=6.0, width=64, height=36, cut=False)
    clip = told["3 frames"]
    begins = [start / FPS for start, _ in SCENES.values()]
    assert [frame.seconds for frame in clip.frames] == pytest.approx(begins, abs=0.31)
    assert clip.cuts == [frame.seconds for frame in clip.frames[1:]] and clip.note == ""
    for frame, (name, _) in zip(clip.frames, SCENES.items(), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(frame.jpeg)))
        assert picture.format == "JPEG" and picture.size == (32, 18)
        assert np.asarray(picture).mean(axis=(0, 1)) == pytest.approx(np.array(COLOURS[name]) + 7, abs=25)
    assert [len(told[f"{count} frames"].frames) for count in (1, 3, 8)] == [1, 3, 8]


def test_brightness_and_motion_are_those_of_the_pixels(told: dict[str, Any]) -> None:
    clip = told["8 frames"]
    assert len(clip.brightness) == 1 + len(clip.motion) > 15
    for at, value in clip.brightness:
        name = next(name for name, (_, end) in SCENES.items() if at < end / FPS - 1e-6)
        assert value == pytest.approx((np.mean(COLOURS[name]) + 7) / 255, abs=0.03)
    assert [at for at, value in clip.motion if value > 0.1] == clip.cuts


def test_a_part_has_its_own_frames_upright_and_no_larger_than_they_are(told: dict[str, Any]) -> None:
    clip = told["second part"]
    assert all(3.0 <= frame.seconds < 6.0 for frame in clip.frames) and len(clip.frames) == 2
    assert Image.open(io.BytesIO(base64.b64decode(clip.frames[0].jpeg))).size == (64, 36)
    assert (told["turned"].width, told["turned"].height) == (36, 64)
    assert Image.open(io.BytesIO(base64.b64decode(told["turned part"].frames[0].jpeg))).size == (18, 32)


def test_the_packets_say_how_long_a_file_is_and_not_its_header(told: dict[str, Any]) -> None:
    assert [told[name].seconds for name in ("streamed", "endless")] == pytest.approx([6.0, 6.0], abs=0.2)
    assert told["uneven"].seconds == pytest.approx(1000, abs=1.5)


def test_where_no_frame_comes_the_part_is_still(told: dict[str, Any]) -> None:
    assert told["still"].still and told["still"].frames == []
    assert [frame.seconds for frame in told["late frame"].frames] == [100]


def test_damage_costs_some_frames(told: dict[str, Any]) -> None:
    assert told["damaged part"].frames


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("truncated", "cannot be decoded"),
        ("a billion frames", "cannot be decoded|no frame|MiB|died|does not end|processor seconds"),
        ("a list of files", "cannot be decoded"),
        ("a text", "cannot be decoded"),
        ("empty", "it is empty"),
        ("a pipe", "it is no regular file"),
        ("missing", "it cannot be opened"),
        ("no time", "its decoding takes too long"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(told: dict[str, Any], name: str, why: str) -> None:
    said = told[name]
    assert isinstance(said, str) and len(said.splitlines()) == 1
    assert any(each in said for each in why.split("|")), said


def test_a_file_whose_end_is_not_found_in_time_says_so(told: dict[str, Any]) -> None:
    assert told["no time for a header"].cut


def test_how_a_process_ended_is_told_even_when_its_answer_fills_the_pipe() -> None:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.set_blocking(theirs, False)
        try:
            while True:
                os.write(theirs, b"x" * 4096)
        except BlockingIOError:
            os._exit(0)
    child = Child(pid, os.pidfd_open(pid), theirs, deadline=0.0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.set_blocking(theirs, True)
    reap(child, "no library")
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read().rpartition(b"\n")[2] == b'[0, "no library"]'
