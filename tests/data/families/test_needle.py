from __future__ import annotations

import numpy as np
import pytest

from model.codec.image import ImageConfig
from model.codec.video import decode_video
from model.data.families import lengthened
from model.data.families.digits import label
from model.data.families.needle import LONGEST, NEEDLE, SHORTEST, needle_sample
from model.data.families.recall import recall_sources, words
from model.data.families.video_needle import CHUNK, VIDEO_NEEDLE, video_needle_sample
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize
from tests.corpus import small_tokenizer


def asked(sample: Sample) -> list[tuple[str, str]]:
    """(what stands before a number, the number) of each question at the end."""
    texts = [segment["text"] for segment in sample.segments[1:]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_a_number_stands_once_in_the_text_after_its_name() -> None:
    for index in range(200):
        sample = NEEDLE.sample(0, "train", index)
        text = "\n" + sample.segments[0]["text"] + "\n"
        assert [part["loss"] for part in sample.segments] == [False] + [False, True] * len(asked(sample))
        assert 1 <= len(asked(sample)) <= 3
        for name, number in asked(sample):
            assert text.count(f"{name}{number}\n") == 1 and len(number) == 4


def test_an_evaluation_hides_one_record_under_a_held_out_word() -> None:
    learned = {word for source in recall_sources("train") for word in words(source, "train")}
    for index in range(100):
        ((name, _),) = asked(NEEDLE.sample(0, "eval", index))
        assert name.strip("\n:=") not in learned


def test_chance_is_one_in_thousands() -> None:
    numbers = [asked(NEEDLE.sample(0, "eval", index))[0][1] for index in range(1000)]
    assert max(numbers.count(number) for number in set(numbers)) <= 3


@pytest.mark.parametrize("depth", [(0.0, 0.1), (0.4, 0.6), (0.9, 1.0)])
def test_a_record_lies_where_it_was_asked_for(depth: tuple[float, float]) -> None:
    for index in range(50):
        sample = needle_sample(np.random.default_rng(index), "eval", index, 1000, depth)
        lines = sample.segments[0]["text"].split("\n")
        ((name, number),) = asked(sample)
        place = lines.index(name.strip("\n") + number) / (len(lines) - 1)
        assert depth[0] - 0.05 <= place <= depth[1] + 0.05


def test_texts_and_videos_are_as_long_as_they_may_be() -> None:
    lengths = [len(NEEDLE.sample(0, "train", index).segments[0]["text"]) for index in range(300)]
    assert SHORTEST <= min(lengths) < 1.3 * SHORTEST and 0.9 * LONGEST < max(lengths) < LONGEST + 100
    families = lengthened(8000, 12)
    longer = [len(families["needle"].sample(0, "train", index).segments[0]["text"]) for index in range(100)]
    assert 6000 < max(longer) < 8100
    clips = [families["video_needle"].sample(0, "train", index) for index in range(60)]
    assert max(_frames(clip).shape[0] for clip in clips) in (44, 48)


def _frames(sample: Sample) -> np.ndarray:
    return decode_video(sample.media["mp4"], ImageConfig())[0]


def test_one_chunk_of_a_video_shows_the_digit() -> None:
    for index in range(12):
        sample = VIDEO_NEEDLE.sample(0, "eval", index)
        contrast = _frames(sample).astype(float).std((1, 2, 3)).reshape(-1, CHUNK)  # an empty frame has none
        assert (contrast > 30).all(1).sum() == 1 and (contrast < 10).all(1).sum() == len(contrast) - 1
        assert sample.segments[-1] == {"type": "text", "text": label(int(sample.source.split("/")[1])), "loss": True}


@pytest.mark.parametrize(("depth", "shown"), [((0.0, 0.1), 0), ((0.95, 1.0), 9)])
def test_a_digit_is_shown_when_it_was_asked_for(depth: tuple[float, float], shown: int) -> None:
    sample = video_needle_sample(np.random.default_rng(1), "eval", 0, 10, depth)
    assert _frames(sample).astype(float).std((1, 2, 3)).argmax() // CHUNK == shown


def test_a_chunk_of_four_frames_costs_the_tokens_of_one_image() -> None:
    config, tokenizer = ImageConfig(), small_tokenizer()
    whole = video_needle_sample(np.random.default_rng(0), "eval", 0, 8)
    read = tokenize(whole, tokenizer, config)
    assert int((read.input_ids == tokenizer.media_pad_id).sum()) == 8  # 32 frames of one token each as images
    assert [t for t, _, _ in read.grid_thws] == [4] * 8
