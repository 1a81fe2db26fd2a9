from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from model.boundary.errors import MoonflowError
from model.codec.chat import encode_chat
from model.codec.image import ImageConfig, encode_image, encode_png
from model.codec.video import encode_mp4
from model.data.samples.tokenize import expand_media, tokenize, tokenize_prompt
from tests.corpus import small_tokenizer
from tests.odd_media import exif, file, video
from tests.samples import make_sample

TOKENIZER = small_tokenizer()
CONFIG = ImageConfig()
PNG = encode_png(np.arange(30 * 60, dtype=np.uint32).reshape(30, 60).astype(np.uint8))
MP4 = encode_mp4(np.zeros((7, 56, 28, 3), np.uint8))
ASK = {
    "role": "user",
    "content": [
        {"type": "image", "media": "1.png"},
        {"type": "image", "media": "2.png"},
        {"type": "text", "text": "Which?"},
    ],
}
ANSWER = {"role": "assistant", "content": "both"}


make = partial(make_sample, key="000007", family="photo")


def shown(ids: torch.Tensor) -> str:
    return TOKENIZER.decode(ids.tolist())


def test_images_get_their_pads_and_pixels_in_order():
    small = encode_png(np.full((28, 28), 255, np.uint8))
    got = tokenize(make(messages=[ASK, ANSWER], media={"1.png": PNG, "2.png": small}), TOKENIZER, CONFIG)
    assert got.grid_thws == [(1, 4, 6), (1, 2, 2)]
    pads = "<|media_pad|>"
    assert shown(got.input_ids) == (
        f"<|im_user|>user<|im_middle|><|media_begin|>image<|media_content|>{pads * 6}<|media_end|>\n"
        f"<|media_begin|>image<|media_content|>{pads}<|media_end|>\nWhich?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>both<|im_end|>"
    )
    assert shown(got.input_ids[got.loss_mask]) == "both<|im_end|>"
    assert got.input_ids.dtype == torch.int64 and got.loss_mask.dtype == torch.bool
    assert got.pixel_values is not None and got.pixel_values.dtype == torch.float32
    assert torch.equal(got.pixel_values[:24], torch.from_numpy(encode_image(PNG, CONFIG)[0]))
    assert torch.equal(got.pixel_values[24:], torch.ones(4, 3, 14, 14))


def test_a_video_is_timestamped_chunks_of_four_frames():
    document = make(
        segments=[
            {"type": "text", "text": "clip ", "loss": False},
            {"type": "video", "media": "mp4"},
            {"type": "text", "text": "left", "loss": True},
        ],
        media={"mp4": MP4},
    )
    got = tokenize(document, TOKENIZER, CONFIG)
    chunk = "<|media_begin|>video<|media_content|><|media_pad|><|media_pad|><|media_end|>"
    assert shown(got.input_ids) == f"[BOS]clip 00:00:00.000{chunk}00:00:02.000{chunk}left[EOS]"
    assert shown(got.input_ids[got.loss_mask]) == "left[EOS]"
    assert got.grid_thws == [(4, 4, 2), (3, 4, 2)]
    assert got.pixel_values is not None and got.pixel_values.shape == (56, 3, 14, 14)
    assert len(got.loss_mask) == len(got.input_ids)


def test_media_known_by_their_headers_alone_have_the_same_tokens():
    turned, clip = file(Image.new("RGB", (30, 90)), exif=exif(6)), video(np.zeros((41, 28, 56, 3), np.uint8), fps=20)
    asked = [{"type": kind, "media": name} for kind, name in (("image", "a"), ("video", "b"), ("image", "c"))]
    encoded = encode_chat([{"role": "user", "content": asked}], [], TOKENIZER)
    media = {"a": turned, "b": clip, "c": PNG}
    whole = expand_media(encoded, media, TOKENIZER, CONFIG)
    known = expand_media(encoded, media, TOKENIZER, CONFIG, pixels=False)
    assert whole.pixel_values is not None and known.pixel_values is None
    assert torch.equal(known.input_ids, whole.input_ids) and known.grid_thws == whole.grid_thws
    assert known.grid_thws == [(1, 4, 8), (4, 2, 4), (1, 4, 6)]


def test_a_text_document_is_learnt_where_its_segments_say():
    got = tokenize(
        make(
            segments=[{"type": "text", "text": "key ", "loss": False}, {"type": "text", "text": "value", "loss": True}]
        ),
        TOKENIZER,
        CONFIG,
    )
    assert shown(got.input_ids) == "[BOS]key value[EOS]"
    assert shown(got.input_ids[got.loss_mask]) == "value[EOS]"
    assert got.pixel_values is None and got.grid_thws == []


def test_a_prompt_ends_where_the_first_assistant_turn_would_begin():
    messages = [{"role": "user", "content": "Count 3"}, ANSWER, {"role": "user", "content": "more"}, ANSWER]
    sample = make(messages=messages, tools=["search"])
    prompt = tokenize_prompt(sample, TOKENIZER, CONFIG)
    whole = tokenize(sample, TOKENIZER, CONFIG)
    assert prompt.input_ids.tolist() == encode_chat(messages[:1], ["search"], TOKENIZER, add_generation_prompt=True).ids
    assert torch.equal(whole.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert not prompt.loss_mask.any()
    assert shown(tokenize_prompt(sample, TOKENIZER, CONFIG, thinking=True).input_ids).endswith("<think>")


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (make(), "neither segments nor messages"),
        (make(messages=[ASK, ANSWER], media={"1.png": PNG}), "medium '2.png'"),
        (make(messages=[ASK, ANSWER], media={"1.png": PNG, "2.png": b"broken"}), "cannot be decoded"),
        (make(messages=[{"role": "nobody", "content": ""}]), "role 'nobody'"),
    ],
)
def test_bad_samples_are_named(sample, told):
    with pytest.raises(MoonflowError, match=rf"sample 000007 of photo: .*{told}"):
        tokenize(sample, TOKENIZER, CONFIG)


def test_a_prompt_needs_a_question():
    with pytest.raises(MoonflowError, match="nothing to ask"):
        tokenize_prompt(make(messages=[ANSWER]), TOKENIZER, CONFIG)
