"""Chunks of frames, and what the tests of model/codec/remote/video_files.py say of files as our callers see it."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig, MediaTooLarge, encode_image, encode_png
from model.codec.video import chunk_timestamps, decode_video, encode_mp4, encode_video, video_grids, video_header
from tests.odd_media import noise, video

CONFIG = ImageConfig()


def test_video_frames_are_chunked_by_four() -> None:
    frames = noise(6, 28, 56, 3)
    values, grids = encode_video(frames, CONFIG)
    assert grids == [(4, 2, 4), (2, 2, 4)] and values.shape == (6 * 8, 3, 14, 14)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(values[8 * i : 8 * i + 8], encode_image(frame, CONFIG)[0])


def test_video_limits_per_frame_and_per_chunk() -> None:
    frames = noise(8, 112, 112, 3)
    assert encode_video(frames, ImageConfig(in_patch_limit_each_frame=16))[1] == [(4, 4, 4)] * 2
    assert encode_video(frames, ImageConfig(in_patch_limit_video=4 * 4))[1] == [(4, 2, 2)] * 2
    assert encode_video(frames[:6], ImageConfig(in_patch_limit_video=4 * 4))[1] == [(4, 2, 2), (2, 4, 4)]


def test_mp4_round_trip_keeps_every_frame_and_its_order() -> None:
    frames = np.zeros((8, 28, 56, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:] = 25 * i
    decoded, seconds = decode_video(encode_mp4(frames), CONFIG)
    assert decoded.shape == frames.shape and seconds == [i / 2 for i in range(8)]
    assert np.abs(decoded.astype(int) - frames).max() <= 8  # lossy
    assert chunk_timestamps(seconds, CONFIG) == ["00:00:00.000", "00:00:02.000"]
    assert chunk_timestamps([3725.5], CONFIG) == ["01:02:05.500"]
    assert chunk_timestamps([2.3], CONFIG) == ["00:00:02.299"]  # cut off in binary, as released


def test_fast_video_is_sampled_at_two_frames_a_second() -> None:
    frames = np.zeros((41, 28, 28, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:] = 5 * i
    decoded, seconds = decode_video(encode_mp4(frames, fps=20), CONFIG)
    assert seconds == [i / 20 for i in (0, 13, 27, 40)]  # round(41 * 2 / 20) = 4 frames, evenly from first to last
    assert np.abs(decoded.mean((1, 2, 3)) - np.array([0, 65, 135, 200])).max() <= 8
    limited = ImageConfig(max_num_frames_each_video=2)
    assert decode_video(encode_mp4(frames, fps=20), limited)[1] == [0, 2]


def test_bad_videos_are_told_in_one_line() -> None:
    for data in (b"", b"not a video", encode_png(noise(28, 28, 3))):
        for call in (video_header, lambda data: video_grids(data, CONFIG), lambda data: encode_video(data, CONFIG)):
            with pytest.raises(MoonflowError, match="cannot be decoded: give an MP4"):
                call(data)
    with pytest.raises(MoonflowError, match="frames, height"):
        encode_video(noise(28, 28, 3), CONFIG)


@pytest.mark.parametrize(("frames", "fps"), [(1, 2), (6, 2), (41, 20), (75, 30), (9, 1)])
def test_a_header_gives_the_grids_and_times_that_decoding_gives(frames: int, fps: int) -> None:
    data = video(np.zeros((frames, 28, 84, 3), np.uint8), fps=fps, turned=90)
    small = ImageConfig(in_patch_limit_each_frame=8, in_patch_limit_video=12, max_num_frames_each_video=9)
    for config in (CONFIG, small):
        grids, seconds = video_grids(data, config)
        assert grids == encode_video(data, config)[1]
        assert seconds == decode_video(data, config)[1]


def test_a_long_video_is_refused_as_such() -> None:
    data = video(np.zeros((2, 28, 28, 3), np.uint8))
    stts = data.index(b"stts")
    with pytest.raises(MediaTooLarge, match="MAX_VIDEO_PIXELS"):
        decode_video(data[: stts + 12] + (30_000_000).to_bytes(4, "big") + data[stts + 16 :], CONFIG)


def test_audio_only_file_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MoonflowError, match="no video stream.*give an MP4"):
        decode_video(buffer.getvalue(), CONFIG)
