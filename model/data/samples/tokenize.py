"""Samples -> token ids, loss mask and pixels: what trainers pack and engines are given (source: ours).

Legend: T tokens, P patches of all media.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from model.boundary.errors import MoonflowError
from model.codec.chat import Encoded, Span, encode_chat, encode_spans, medium
from model.codec.declared_tools import declare
from model.codec.image import Grid, ImageConfig, encode_image, image_grid
from model.codec.tokenizer import Tokenizer
from model.codec.video import chunk_timestamps, decode_video, encode_video, frame_grids, video_grids
from model.data.samples.sample import Sample


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
    """The whole sample: a document as ``[BOS] segments [EOS]``, a conversation by the chat template, an episode as it
    was sampled, token by token.

    Raises:
        MoonflowError: naming the sample, when it is empty, its turns cannot be rendered, a medium is missing, or its
            episode does not continue its prompt.
    """
    return replace(_tokenized(sample, tokenizer, image_config, pixels=True), key=sample.key)


def count_tokens(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> tuple[int, int]:
    """How many tokens ``tokenize`` makes of the sample, and how many of them are media pads, without decoding media.

    Raises as ``tokenize``, except that it does not notice damage after a medium's header.
    """
    expanded = _tokenized(sample, tokenizer, image_config, pixels=False)
    return len(expanded.input_ids), int((expanded.input_ids == tokenizer.media_pad_id).sum())


def tokenize_prompt(
    sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig, thinking: bool = False, pixels: bool = True
) -> TokenizedSample:
    """The turns before the first assistant turn, and the generation prompt; no loss. Raises as ``tokenize``.

    Without ``pixels``, only the headers of the media are read (``expand_media``).
    """
    roles = [message.get("role") for message in sample.messages]
    prompt = sample.messages[: roles.index("assistant")] if "assistant" in roles else sample.messages
    try:
        if not prompt:
            raise MoonflowError("it has no turn before the assistant's, so there is nothing to ask")
        tools = [*sample.tools, *declare(sample.declared_tools)]
        encoded = encode_chat(prompt, tools, tokenizer, add_generation_prompt=True, thinking=thinking)
        return expand_media(encoded, sample.media, tokenizer, image_config, pixels)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error


def tokenize_opening(
    sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig, pixels: bool = True
) -> TokenizedSample:
    """A document up to its last segment, which is to be completed; no loss. Raises as ``tokenize``.

    Without ``pixels``, only the headers of the media are read (``expand_media``).
    """
    try:
        if not sample.segments:
            raise MoonflowError("it is no document, so there is nothing to complete")
        encoded = encode_spans(_opening(sample.segments[:-1]), tokenizer)
        return expand_media(encoded, sample.media, tokenizer, image_config, pixels)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error


def _tokenized(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig, pixels: bool) -> TokenizedSample:
    try:
        if not sample.episode:
            return expand_media(_encode(sample, tokenizer), sample.media, tokenizer, image_config, pixels)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error
    prompt = tokenize_prompt(sample, tokenizer, image_config, sample.thinks, pixels)
    try:
        return _continued(prompt, sample.episode["token_ids"], sample.episode["sampled"], tokenizer)
    except MoonflowError as error:
        raise MoonflowError(f"sample {sample.key} of {sample.family}: {error}") from error


def _continued(
    prompt: TokenizedSample, ids: Sequence[int], sampled: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> TokenizedSample:
    """The prompt with the rest of its episode. Nothing is decoded and encoded again, which could give other tokens."""
    begun = len(prompt.input_ids)
    if list(ids[:begun]) != prompt.input_ids.tolist():
        raise MoonflowError(
            "its episode does not begin with the tokens of its prompt: it was sampled with another tokenizer or other "
            "image settings than this data's; sample it again"
        )
    if not all(0 <= token < tokenizer.vocab_size for token in ids) or tokenizer.media_pad_id in ids[begun:]:
        raise MoonflowError("its episode has a token that is not in the vocabulary, or a media pad without a medium")
    edges = [begun, *(edge for span in sampled for edge in span), len(ids)]
    if not sampled or edges != sorted(edges):
        raise MoonflowError("the sampled ranges of its episode are not in order between its prompt and its end")
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for begin, end in sampled:
        mask[begin:end] = True
    return replace(prompt, input_ids=torch.tensor(ids, dtype=torch.int64), loss_mask=mask)


def _encode(sample: Sample, tokenizer: Tokenizer) -> Encoded:
    try:
        if sample.messages and sample.segments:
            raise MoonflowError("it has both segments and messages, and only one can be trained on")
        if sample.messages:
            return encode_chat(sample.messages, [*sample.tools, *declare(sample.declared_tools)], tokenizer)
        if sample.segments:
            end = Span("special", "[EOS]", bool(sample.segments[-1].get("loss", False)))
            return encode_spans([*_opening(sample.segments), end], tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise MoonflowError(
            f"a segment or turn lacks a field or has one of another type ({type(error).__name__}: {error}); "
            "see model/data/samples/sample.py"
        ) from error
    raise MoonflowError("it has neither segments nor messages")


def _opening(segments: Sequence[Mapping[str, Any]]) -> Iterator[Span]:
    """The spans of a document with these segments, without its end."""
    yield Span("special", "[BOS]")
    for segment in segments:
        if segment["type"] == "text":
            yield Span("text", segment["text"], segment["loss"])
        elif segment["type"] in ("image", "video"):
            yield from medium(segment["type"], segment["media"])
        else:
            raise MoonflowError(f"unknown segment type {segment['type']!r}; use text, image or video")


@lru_cache(maxsize=4)
def _video_head(tokenizer: Tokenizer) -> list[int]:
    """The tokens before the pads of a video, or of one of its chunks."""
    return encode_spans(list(medium("video", ""))[:3], tokenizer).ids


def expand_media(
    encoded: Encoded, media: Mapping[str, bytes], tokenizer: Tokenizer, image_config: ImageConfig, pixels: bool = True
) -> TokenizedSample:
    """Replace the one pad of each medium: of an image by all its pads, of a video by its timestamped chunks.

    Args:
        media: file contents by the names in ``encoded.media``.
        pixels: False to read only the headers of the media: the same tokens and grids, but ``pixel_values`` is None.

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
    video_head = _video_head(tokenizer)
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
            # The first chunk's timestamp comes before the head, which is written already; <|media_end|> follows.
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
