"""Samples -> token ids, loss mask and pixels: what trainers pack and engines are asked (source: ours).

Legend: T tokens, P patches of all media.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from model.chat import Encoded, Piece, encode_chat, encode_pieces, medium
from model.data.sample import Sample
from model.errors import MoonflowError
from model.image import Grid, ImageConfig, encode_image, image_grid
from model.tokenizer import Tokenizer
from model.video import chunk_timestamps, decode_video, encode_video, frame_grids, video_grids


@dataclass(frozen=True)
class TokenizedSample:
    """One sample, ready to be packed.

    Attributes:
        input_ids: int64 [T]; each image and each 4-frame video chunk has its h/2 * w/2 media pads.
        loss_mask: bool [T]; True where the token itself is a training target (predicted from those before it).
        pixel_values: float32 [P, 3, 14, 14] of all media in order, or None.
        grid_thws: (t, h, w) in patches of each image or chunk, in order.
        key: of the sample.
    """

    input_ids: torch.Tensor
    loss_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    grid_thws: list[Grid]
    key: str = ""


def tokenize(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> TokenizedSample:
    """The whole sample: a document as ``[BOS] segments [EOS]``, a conversation by the chat template.

    Raises:
        MoonflowError: naming the sample, when it is empty, its turns cannot be rendered or a medium is missing.
    """
    try:
        encoded = _encode(sample, tokenizer)
        return replace(expand_media(encoded, sample.media, tokenizer, image_config), key=sample.key)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error


def count_tokens(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> tuple[int, int]:
    """How many tokens ``tokenize`` makes of the sample, and how many of them are media pads; media are not decoded.

    Raises as ``tokenize``, except that a medium whose header is sound counts as sound.
    """
    try:
        expanded = expand_media(_encode(sample, tokenizer), sample.media, tokenizer, image_config, pixels=False)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error
    return len(expanded.input_ids), int((expanded.input_ids == tokenizer.media_pad_id).sum())


def tokenize_prompt(
    sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig, thinking: bool = False
) -> TokenizedSample:
    """The turns before the first assistant turn, and the generation prompt; no loss. Raises as ``tokenize``."""
    roles = [message.get("role") for message in sample.messages]
    prompt = sample.messages[: roles.index("assistant")] if "assistant" in roles else sample.messages
    try:
        if not prompt:
            raise MoonflowError("it has no turn before the assistant's, so there is nothing to ask")
        encoded = encode_chat(prompt, sample.tools, tokenizer, add_generation_prompt=True, thinking=thinking)
        return expand_media(encoded, sample.media, tokenizer, image_config)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error


def _encode(sample: Sample, tokenizer: Tokenizer) -> Encoded:
    try:
        if sample.messages:
            return encode_chat(sample.messages, sample.tools, tokenizer)
        if sample.segments:
            return encode_pieces(_document(sample), tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise MoonflowError(
            f"a segment or turn lacks a field or has one of another type ({type(error).__name__}: {error}); "
            "see model/data/sample.py"
        ) from error
    raise MoonflowError("it has neither segments nor messages")


def _document(sample: Sample) -> Iterator[Piece]:
    yield Piece("special", "[BOS]")
    for segment in sample.segments:
        if segment["type"] == "text":
            yield Piece("text", segment["text"], segment["loss"])
        else:
            yield from medium(segment["type"], segment["media"])
    yield Piece("special", "[EOS]", bool(sample.segments[-1].get("loss", False)))


def expand_media(
    encoded: Encoded, media: Mapping[str, bytes], tokenizer: Tokenizer, image_config: ImageConfig, pixels: bool = True
) -> TokenizedSample:
    """Replace each medium's one pad: an image by its pads, a video by its timestamped chunks.

    Args:
        media: file contents by the names in ``encoded.media``.
        pixels: False to know the media by their headers alone: the same tokens and grids, ``pixel_values`` is None.

    Raises:
        MoonflowError: a medium is missing or cannot be decoded; MediaTooLarge, if it is over a bound.
    """
    if not encoded.media:
        return TokenizedSample(torch.tensor(encoded.ids), torch.tensor(encoded.loss), None, [])
    ids: list[int] = []
    loss: list[bool] = []
    values: list[torch.Tensor] = []
    grids: list[Grid] = []
    merged = image_config.merge_kernel_size**2
    pad = tokenizer.media_pad_id
    video_head = encode_pieces(list(medium("video", ""))[:3], tokenizer).ids
    names = iter(encoded.media)
    for token, target in zip(encoded.ids, encoded.loss, strict=True):
        if token != pad:
            ids.append(token)
            loss.append(target)
            continue
        name = next(names)
        if name not in media:
            raise MoonflowError(f"medium {name!r} is not among its files ({', '.join(media) or 'none'})")
        if ids[-len(video_head) :] == video_head:
            # The first chunk's timestamp stands before the head that is already written; <|media_end|> follows.
            if pixels:
                frames, seconds = decode_video(media[name], image_config)
                values.append(torch.from_numpy(encode_video(frames, image_config)[0]))
                chunks = frame_grids(frames.shape, image_config)
            else:
                chunks, seconds = video_grids(media[name], image_config)
            del ids[-len(video_head) :], loss[-len(video_head) :]
            span: list[int] = []
            for stamp, (_, h, w) in zip(chunk_timestamps(seconds, image_config), chunks, strict=True):
                if span:
                    span.append(tokenizer.token_id("<|media_end|>"))
                span += tokenizer.encode(stamp) + video_head + [pad] * (h * w // merged)
        else:
            if pixels:
                encoded_image, grid = encode_image(media[name], image_config)
                values.append(torch.from_numpy(encoded_image))
            else:
                grid = image_grid(media[name], image_config)
            chunks = [grid]
            span = [pad] * (grid[1] * grid[2] // merged)
        ids += span
        loss += [False] * len(span)
        grids += chunks
    return TokenizedSample(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        loss_mask=torch.tensor(loss, dtype=torch.bool),
        pixel_values=torch.cat(values) if values else None,
        grid_thws=grids,
    )
