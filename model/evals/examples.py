"""Held-out tasks as people read them: the picture, the question, what a model did, and its answer (source: ours).

All texts are cut, and pictures are made small, so that many examples fit on one page. What a model wrote is foreign
text: it is cleaned of characters that cannot be seen, but whoever shows it on a page must still escape it.

Shapes: N frames, H and W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import cut, shown
from model.codec.chat import parse_assistant
from model.codec.image import ImageConfig, read_rgb
from model.codec.tokenizer import Tokenizer
from model.codec.video import decode_video
from model.data.samples.sample import Sample
from model.evals.score import task_score
from model.evals.scorer import reference_answer
from model.rl.environment import Episode
from model.rl.tools.toolset import environment_array

QUESTION, TURN, ANSWER = 600, 400, 200  # characters that are kept
TURNS = 8  # turns of an episode that are kept
FRAMES = 3  # of a video or of several pictures: the first, the middle and the last one
SIDE = 224  # pixels of a picture's longer side
PICTURE_BYTES = 6000  # of all pictures of one task, as PNG
COLOURS = (64, 16)  # of a picture; fewer if it is too large

Pixels = NDArray[np.uint8]
Role = Literal["thinks", "says", "calls", "returns"]


@dataclass(frozen=True)
class Turn:
    """A part of an episode: the model thinks, says or calls something, or a tool or the environment returns something.

    ``tool`` is the name of the tool that is called; ``text`` its arguments, or what was said or returned.
    """

    role: Role
    text: str
    tool: str = ""


@dataclass(frozen=True)
class Task:
    """What is asked.

    Attributes:
        key: of the sample.
        question: texts of the prompt.
        answer: the right one.
        pictures: at most ``FRAMES``, each a PNG in base64.
        frames: how many pictures or frames the task has.
        shown: whether the model is shown them; if not, only its programs see them.
        problem: one line: why the pictures cannot be read; "" if they can.
    """

    key: str
    question: str
    answer: str
    pictures: list[str]
    frames: int
    shown: bool
    problem: str = ""


@dataclass(frozen=True)
class Attempt:
    """What a model did with a task.

    Attributes:
        turns: at most ``TURNS``, the final answer left out.
        more: how many turns are left out after them.
        response: the final answer, "" if there is none.
        ended: ``Episode.finish_reason``.
        failure: ``Episode.failure``.
        score: from 0 to 1; 1 is right.
    """

    turns: list[Turn]
    more: int
    response: str
    ended: str
    failure: str
    score: float


def describe_task(sample: Sample, image_config: ImageConfig) -> Task:
    """The task of a held-out sample. One whose pictures cannot be read is described without them."""
    parts = list(_parts(sample))
    question = "\n".join(str(part["text"]).strip() for part in parts if part.get("type") == "text")
    visible = any(part.get("type") in ("image", "video") for part in parts)
    problem = ""
    try:
        frames = _frames(sample, parts, image_config)
    except MoonflowError as error:
        frames, problem = [], shown(str(error))
    kept = frames if len(frames) <= FRAMES else [frames[0], frames[len(frames) // 2], frames[-1]]
    pictures = [base64.b64encode(small_png(frame, PICTURE_BYTES // len(kept))).decode() for frame in kept]
    answer = cut(reference_answer(sample), ANSWER)
    return Task(sample.key, cut(question, QUESTION), answer, pictures, len(frames), visible, problem)


def describe_attempt(sample: Sample, episode: Episode, tokenizer: Tokenizer) -> Attempt:
    """What the episode of a held-out sample shows."""
    found = turns(episode, tokenizer)
    if found and found[-1] == Turn("says", episode.response):
        found.pop()
    kept = [Turn(turn.role, cut(turn.text, TURN), shown(turn.tool, 40)) for turn in found[:TURNS]]
    return Attempt(
        turns=kept,
        more=len(found) - len(kept),
        response=cut(episode.response, ANSWER),
        ended=episode.finish_reason,
        failure=shown(episode.failure),
        score=task_score(sample, episode),
    )


def turns(episode: Episode, tokenizer: Tokenizer) -> list[Turn]:
    """The turns of an episode after its prompt, read back from its tokens. A turn that is no message is one text."""
    found: list[Turn] = []
    for sampled, run in groupby(zip(episode.input_ids, episode.policy_mask, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        if sampled:
            found += _spoken(ids, tokenizer)
        elif found:  # before the first turn there is only the prompt
            found += _observed(ids, tokenizer)
    return found


def _spoken(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[Turn]:
    turn = parse_assistant(ids, tokenizer)
    if turn.error is not None:
        yield Turn("says", tokenizer.decode(ids))
        return
    if turn.reasoning:
        yield Turn("thinks", turn.reasoning)
    if turn.content or not (turn.reasoning or turn.tool_calls):
        yield Turn("says", turn.content)
    for call in turn.tool_calls:
        yield Turn("calls", "\n".join(str(value) for value in call.arguments.values()), call.name)


def _observed(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[Turn]:
    """What was returned between two turns of the model; its next turn, which the tokens open, is not among it."""
    middle, end = tokenizer.token_id("<|im_middle|>"), tokenizer.im_end_id
    body: list[int] | None = None
    for token in ids:
        if token == middle:
            body = []
        elif token == end and body is not None:
            text = tokenizer.decode(body)
            yield Turn("returns", text.partition("\n")[2] if text.startswith("## Return of ") else text)
            body = None
        elif body is not None:
            body.append(token)


def _parts(sample: Sample) -> Iterator[dict[str, Any]]:
    """The texts and media of a prompt, in order: of a document without its last segment, of a chat up to the answer."""
    if sample.segments:
        yield from sample.segments[:-1]
        return
    for message in sample.messages:
        if message.get("role") == "assistant":
            return
        content = message.get("content") or ""
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _frames(sample: Sample, parts: Sequence[dict[str, Any]], config: ImageConfig) -> list[Pixels]:
    """What a prompt shows, or else what its programs see: uint8 [H, W] or [H, W, 3] each.

    Raises:
        MoonflowError: a medium is missing or cannot be read.
    """
    found: list[Pixels] = []
    for part in parts:
        if part.get("type") not in ("image", "video"):
            continue
        if part.get("media") not in sample.media:
            raise MoonflowError(f"medium {part.get('media')!r} is missing")
        data = sample.media[part["media"]]
        found += list(decode_video(data, config)[0]) if part["type"] == "video" else [np.asarray(read_rgb(data))]
    if found or (array := environment_array(sample, config)) is None:
        return found
    return [frame[..., 0] if frame.shape[2] == 1 else frame for frame in array] if array.ndim == 4 else [array]


def small_png(pixels: Pixels, most: int) -> bytes:
    """uint8 [H, W] or [H, W, 3] as a PNG of at most ``most`` bytes: with fewer colours first, then with fewer pixels.

    A picture of one pixel is returned as it is, however small ``most`` is.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    while True:
        for colours in COLOURS:
            buffer = io.BytesIO()
            image.quantize(colours).save(buffer, "PNG", optimize=True)
            if buffer.tell() <= most or image.size == (1, 1):
                return buffer.getvalue()
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)))
