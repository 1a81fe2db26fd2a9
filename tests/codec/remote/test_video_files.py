"""Video files: which frames are taken, and what a file can make the reader do."""

from __future__ import annotations

import io
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from model.codec.remote import video_files
from model.codec.remote.media_errors import MediaError, MediaOverBound
from model.codec.remote.media_structure import mp4_index
from model.codec.remote.video_files import VideoHeader, read_video, video_header
from tests.odd_media import decoded, noise, video

ROOT = Path(__file__).parents[3]
SMALL = noise(41, 28, 56, 3)
FILES = {
    "MP4": video(SMALL, fps=20),
    "MP4 with H.264": video(SMALL, codec="libx264", fps=20),
    "MP4 in fragments": video(SMALL, fps=20, movflags="frag_keyframe+empty_moov"),
    "MOV": video(SMALL, "mov", fps=20),
    "Matroska": video(SMALL, "matroska", "libx264", fps=20),
    "WebM": video(SMALL, "webm", "libvpx", fps=20),
    "AVI": video(SMALL, "avi", fps=20),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_are_spaced_evenly_over_all_of_them(name: str) -> None:
    """The formula of the released processor, from every frame of the file."""
    every = decoded(FILES[name])
    assert len(every) == 41
    for sample_fps, most, numbers in ((2, None, [0, 13, 27, 40]), (2, 2, [0, 40]), (30, None, list(range(41)))):
        frames, seconds = read_video(FILES[name], sample_fps, most)
        np.testing.assert_array_equal(frames, every[numbers])
        assert seconds == [number / 20 for number in numbers]
    assert video_header(FILES[name]) == VideoHeader(width=56, height=28, quarter_turns=0, fps=20, frames=41)


@pytest.mark.parametrize(("turned", "quarters"), [(90, 1), (180, 2), (-90, 3), (45, 0)])
def test_a_video_is_turned_as_a_player_turns_it(turned: int, quarters: int) -> None:
    data = video(SMALL[:2], turned=turned)
    frames, _ = read_video(data, 2)
    np.testing.assert_array_equal(frames, np.rot90(decoded(data), quarters, axes=(1, 2)))
    assert video_header(data).upright == (frames.shape[2], frames.shape[1])


def remuxed(data: bytes, kind: str, *between: Callable[[bytes], bytes]) -> bytes:
    """A video with further packets before each of its own, made from it."""
    with av.open(io.BytesIO(data)) as source, av.open(buffer := io.BytesIO(), "w", format=kind) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            held = bytes(packet)
            for place, bits in enumerate([make(held) for make in between] + [held] if held else []):
                put = av.Packet(bits)
                put.pts = put.dts = packet.pts * (len(between) + 1) + place
                put.time_base, put.stream, put.is_keyframe = packet.time_base, stream, packet.is_keyframe
                out.mux(put)
    return buffer.getvalue()


def test_frames_that_only_predict_others_are_not_counted() -> None:
    """VP8 has packets that are not shown: here every frame is there twice, first with the bit that hides it."""
    data = remuxed(FILES["WebM"], "webm", lambda packet: bytes([packet[0] & ~0x10]) + packet[1:])
    every = decoded(data)
    assert len(every) == 41 and video_header(data).frames == 41
    np.testing.assert_array_equal(read_video(data, 100)[0], every)


def test_a_count_that_packets_do_not_tell_is_corrected_by_decoding() -> None:
    """MPEG-4 has packets that say "nothing new": no frame comes of them."""
    data = remuxed(video(SMALL, "matroska", fps=20), "matroska", lambda packet: b"\0\0\1\xb6\x50\x5f")
    every = decoded(data)
    assert len(every) == 41 and video_header(data).frames == 82
    frames, seconds = read_video(data, 2)
    rate = video_header(data).fps
    numbers = np.linspace(0, 40, round(41 * 2 / rate)).round().astype(int)
    np.testing.assert_array_equal(frames, every[numbers])
    assert seconds == [number / rate for number in numbers]


def joined(*parts: bytes) -> bytes:
    """VP8 files one after another, in one WebM file."""
    buffer, stream = io.BytesIO(), None
    with av.open(buffer, "w", format="webm") as out:
        for number, part in enumerate(parts):
            with av.open(io.BytesIO(part)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + 1500 * number
                        packet.stream = stream
                        out.mux(packet)
    return buffer.getvalue()


def test_frames_of_another_size_are_scaled_to_the_first() -> None:
    """As calls on bad networks are recorded: VP8 may change its size in mid-stream."""
    small, large = np.full((3, 32, 64, 3), 200, np.uint8), np.full((3, 64, 128, 3), 100, np.uint8)
    frames, _ = read_video(joined(video(small, "webm", "libvpx"), video(large, "webm", "libvpx")), 2)
    assert frames.shape == (6, 32, 64, 3)
    assert np.abs(frames.mean((1, 2, 3)) - [200, 200, 200, 100, 100, 100]).max() < 4


def test_a_rate_that_is_absurd_or_missing_is_survived() -> None:
    assert len(read_video(video(SMALL[:6], codec="libx264", fps=100_000), 2)[0]) == 1
    still = video_header(video(SMALL[:6]))
    assert still._replace(fps=0.0).taken(2, None) == list(range(6))  # taken as sampled already
    assert still._replace(fps=0.0).seconds(2, None) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert still._replace(fps=1e9).taken(2, None) == [0]
    assert still._replace(fps=1e-9).taken(2, None) == list(range(6))


# What a file can make the reader do.


def texts(port: int) -> dict[str, bytes]:
    address = f"http://127.0.0.1:{port}/a.ts"
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    sdp += "a=rtpmap:96 H264/90000\n"
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
    return {
        "SDP": sdp.encode(),
        "HLS": hls.encode(),
        "concat": f"ffconcat version 1.0\nfile '{address}'\n".encode(),
        "SDP after an MP4's start": b"\0\0\0\x08ftyp" + sdp.encode(),
        "HLS after a Matroska's start": b"\x1aE\xdf\xa3" + hls.encode(),
        "SDP after an AVI's start": b"RIFF\0\0\0\0AVI " + sdp.encode(),
        "no video": b"not a video",
        "nothing": b"",
        "half an MP4": FILES["MP4"][:200],
    }


@pytest.mark.parametrize("name", texts(0))
def test_what_is_no_video_is_told_at_once_and_opens_no_address(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        data = texts(listening.getsockname()[1])[name]
        start = time.monotonic()
        with pytest.raises(MediaError, match="give an MP4, WebM, Matroska or AVI file") as caught:
            read_video(data, 2)
        assert time.monotonic() - start < 2 and "\n" not in str(caught.value)
        with pytest.raises(BlockingIOError):
            listening.accept()


def sample_table(mp4: bytes, name: bytes, at: int, *fields: int) -> bytes:
    """The MP4 with 32-bit numbers of one of its boxes replaced, ``at`` bytes after the box's name."""
    place = mp4.index(name) + 4 + at
    changed = struct.pack(f">{len(fields)}I", *fields)
    return mp4[:place] + changed + mp4[place + len(changed) :]


def lies() -> dict[str, tuple[bytes, str]]:
    small = video(SMALL[:4])
    parts = video(SMALL[:4], movflags="frag_keyframe+empty_moov+default_base_moof")
    counted = sample_table(small, b"stsz", 4, 1, 40_000_000)
    counted = sample_table(counted, b"stsc", 12, 40_000_000)
    counted = sample_table(counted, b"stts", 8, 40_000_000)
    hidden = small[:-8] + b"\0\0\0\x10free" + counted[counted.index(b"stsz") - 4 :]
    return {
        "samples": (counted, "40,000,000 samples.*MAX_INDEX_ENTRIES"),
        "samples in a fragment": (sample_table(parts, b"trun", 0, 1, 80_000_000), "80,000,0.. samples"),
        "samples in a long box": (
            sample_table(parts, b"trun", -8, 1, 0x7472756E, 0, 32, 1, 80_000_000),
            "80,000,0.. samples",
        ),
        "samples in a box that is to be skipped": (hidden, "40,000,0.. samples"),
        "edits": (sample_table(small, b"elst", 4, 3_000_000), "3,000,000 edits.*MAX_INDEX_ENTRIES"),
        "frames": (sample_table(small, b"stts", 8, 50_000_000), "50,000,000 frames.*MAX_VIDEO_PIXELS"),
    }


@pytest.mark.parametrize("name", lies())
def test_an_index_that_would_not_fit_in_memory_is_refused_before_it_is_built(name: str) -> None:
    """A kilobyte took 5 GB and 16 seconds, inside one call of FFmpeg."""
    data, told = lies()[name]
    start = time.thread_time()
    with pytest.raises(MediaOverBound, match=told):
        video_header(data)
    assert len(data) < 30_000 and time.thread_time() - start < 0.5


@pytest.mark.parametrize("boxes", [b"\0\0\0\x08free", b"\0\0\0\x08mdat\0\0\0\x08free"])
def test_boxes_without_end_are_searched_as_one(boxes: bytes) -> None:
    """24 MB of them took 7 seconds and 350 MB."""
    counted = sample_table(video(SMALL[:4]), b"stsz", 4, 1, 40_000_000)
    start = time.thread_time()
    samples, _, _ = mp4_index(counted + boxes * (24_000_000 // len(boxes)))
    assert samples >= 40_000_000 and time.thread_time() - start < 0.5


def test_a_compressed_header_is_refused() -> None:
    data = FILES["MOV"].replace(b"udta", b"cmov")
    with pytest.raises(MediaError, match="compressed header"):
        video_header(data)


def test_names_of_boxes_among_the_frames_mean_nothing() -> None:
    data = FILES["MP4"]
    free = b"\0\0\0\x20mdat" + b"stsz" + b"\xff" * 12 + b"cmov" + b"elst"
    np.testing.assert_array_equal(read_video(data + free, 2)[0], read_video(data, 2)[0])


def test_a_video_may_not_take_more_time_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """All passes over it together."""
    still = np.zeros((360, 640, 3), np.uint8)
    data = video((still for _ in range(400)), fps=25)
    monkeypatch.setattr(video_files, "MAX_VIDEO_SECONDS", 0.1)
    start = time.thread_time()
    with pytest.raises(MediaOverBound, match="over 0.1 processor seconds.*MAX_VIDEO_SECONDS"):
        read_video(data, 25)
    assert time.thread_time() - start < 0.2


def test_the_bounds_are_told_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES["MP4 with H.264"]
    for bound, value, told in (
        ("MAX_FRAME_PIXELS", 56 * 28 - 1, "56 x 28 pixels a frame: give at most 1,567 "),
        ("MAX_VIDEO_PIXELS", 41 * 56 * 28 - 1, "41 frames of 56 x 28 pixels"),
        ("MAX_TAKEN_PIXELS", 4 * 56 * 28 - 1, "4 frames of 56 x 28 pixels to be taken"),
        ("MAX_VIDEO_SECONDS", 0.0, "processor seconds"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(video_files, bound, value)
            with pytest.raises(MediaOverBound, match=f"{told}.*{bound}"):
                read_video(data, 2)
            patch.setattr(video_files, bound, value + 1 if value else 30)
            assert len(read_video(data, 2)[0]) == 4


def test_frames_that_are_larger_than_the_header_says_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (video(noise(3, height, 2 * height, 3), "webm", "libvpx") for height in (28, 64))
    huge = video(noise(3, 200, 400, 3), "webm", "libvpx")
    monkeypatch.setattr(video_files, "MAX_FRAME_PIXELS", 64 * 64)
    assert len(read_video(joined(small, small), 2)[0]) == 6
    for data in (joined(small, large), large):
        with pytest.raises(MediaOverBound, match="128 x 64 pixels a frame.*MAX_FRAME_PIXELS"):
            read_video(data, 2)
    with pytest.raises(MediaError, match="cannot be decoded"):  # the decoder itself refuses it
        read_video(joined(small, huge), 2)


MEASURED = """
import resource, sys
from model.codec.remote.video_files import read_video, video_header
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
video_header(data)
header = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
frames, _ = read_video(data, 2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*frames.shape, (header - before) // 1024, (after - before) // 1024)
"""


def test_only_the_taken_frames_are_in_memory(tmp_path: Path) -> None:
    """A clip of 15 s in 720p took 1.3 GB; its 30 taken frames are 79 MiB."""
    still = np.zeros((720, 1280, 3), np.uint8)
    (tmp_path / "a.mp4").write_bytes(video((still for _ in range(375)), fps=25))
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "a.mp4"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    *shape, header, whole = map(int, ran.stdout.split())
    assert shape == [30, 720, 1280, 3] and header < 60 and whole < 160, ran.stdout


def test_no_broken_byte_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    for name in ("MP4", "MP4 in fragments", "WebM", "AVI"):
        whole = FILES[name]
        for _ in range(60):
            changed = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                changed[place] = rng.integers(256)
            try:
                frames, seconds = read_video(bytes(changed), 2)
                assert len(frames) == len(seconds)
            except MediaError:
                pass
