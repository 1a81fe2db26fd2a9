"""A user's prompt, checked, as a sample; the form of a verdict (source: ours). Runs in the task's own process."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from model.boundary.errors import MoonflowError, did_you_mean
from model.codec.image import encode_png, image_size
from model.data.samples.sample import Split
from model.rl.rewards.verdict import SCORE
from model.rl.task_check import check_task
from model.rl.tasks.names import short_name
from model.rl.tasks.task import MAX_TURNS, MAX_TURNS_WITH_TOOLS, About, Environment, Prompt, TaskSample

TOOLS = ("ipython", "search")
ROLES = ("system", "user")
_PART = re.compile(r"[a-z]\w{0,59}", re.ASCII | re.IGNORECASE)


def as_sample(name: str, about: About, prompt: Any, seed: int, split: Split, index: int) -> TaskSample:
    """The sample of a prompt.

    Raises:
        MoonflowError: what is wrong with the prompt.
    """
    _check_keys("the prompt", prompt, Prompt.__annotations__)
    media = _Media()
    messages = [_turn(turn, n, media) for n, turn in enumerate(_list("messages", prompt.get("messages")))]
    if not messages:
        raise MoonflowError("messages is empty: nothing is asked")
    shown = bool(media.files)
    tools = _list("tools", prompt.get("tools", []))
    for tool in tools:
        if tool not in TOOLS:
            raise MoonflowError(f"tools: there is no tool {tool!r}; choose from {', '.join(TOOLS)}")
    answer, rubric = prompt.get("answer"), prompt.get("rubric", "")
    if not isinstance(rubric, str):
        raise MoonflowError(f"rubric is {_kind(rubric)}: write a text")
    try:
        json.dumps(answer, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise MoonflowError(f"answer: JSON cannot hold it ({error})") from None
    sample = TaskSample(
        key=f"{split}-{seed}-{index}",
        family=short_name(name),
        ability=about.ability,  # type: ignore[arg-type]  # checked where the task was loaded
        modality="image" if shown else "text",
        source=f"{name}/{split}-{seed}-{index}",
        messages=messages,
        tools=tools,
        answer=answer,
        reward=name,
        rubric=rubric,
        environment=_environment(prompt.get("environment", {}), media),
        media=media.files,
        seed=seed,
        split=split,
        index=index,
        max_new_tokens=about.max_new_tokens,
        max_turns=about.max_turns or (MAX_TURNS_WITH_TOOLS if tools else MAX_TURNS),
        judged_by=about.reward,
    )
    if about.reward:
        check_task(replace(sample, reward=about.reward))
    return sample


def as_verdict(found: Any) -> dict[str, float]:
    """What ``verify`` returned as ``score`` and parts.

    Raises:
        MoonflowError: there is no score, it is not in [0, 1], or a part is no finite number.
    """
    values = found if isinstance(found, Mapping) else {SCORE: found}
    if SCORE not in values:
        raise MoonflowError(f"verify returned no {SCORE!r} among its parts {', '.join(map(str, values)) or '(none)'}")
    verdict: dict[str, float] = {}
    for part, value in values.items():
        if not isinstance(part, str) or not _PART.fullmatch(part):
            raise MoonflowError(f"verify named a part {part!r}: use letters, digits and _, at most 60")
        if not isinstance(value, int | float | np.number | np.bool_):
            raise MoonflowError(f"verify returned {_kind(value)} as {part}: return a number")
        verdict[part] = float(value)
        if not math.isfinite(verdict[part]):
            raise MoonflowError(f"verify returned {verdict[part]} as {part}: return a finite number")
    if not 0 <= verdict[SCORE] <= 1:
        raise MoonflowError(f"verify returned the score {verdict[SCORE]:g}: scores go from 0 to 1")
    return verdict


class _Media:
    """The images of a prompt. ``files``: contents by the names that turns and environment give them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}

    def add(self, image: Any, where: str) -> str:
        """The name of an image. MoonflowError says why it cannot be one."""
        try:
            content = _encoded(image)
            image_size(content)
        except MoonflowError as error:
            raise MoonflowError(f"{where}: {error}") from None
        if content not in self._names:
            self._names[content] = f"{len(self.files)}.image"
            self.files[self._names[content]] = content
        return self._names[content]


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")).save(buffer, "PNG")
        return buffer.getvalue()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)) or not image.size:
            raise MoonflowError(f"the array is {image.dtype} {list(image.shape)}: give uint8 [H, W] or [H, W, 3]")
        return encode_png(image)
    raise MoonflowError(f"it is {_kind(image)}: give an image of PIL, an array or the bytes of a file")


def _turn(turn: Any, number: int, media: _Media) -> dict[str, Any]:
    where = f"messages.{number}"
    _check_keys(where, turn, ("role", "content"))
    if turn.get("role") not in ROLES:
        raise MoonflowError(f"{where}.role is {turn.get('role')!r}: a prompt has turns of {' and '.join(ROLES)}")
    content = turn.get("content")
    if isinstance(content, str):
        return {"role": turn["role"], "content": content}
    parts: list[dict[str, Any]] = []
    for n, part in enumerate(_list(f"{where}.content", content)):
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            parts.append({"type": "image", "media": media.add(part, f"{where}.content.{n}")})
    return {"role": turn["role"], "content": parts}


def _environment(given: Any, media: _Media) -> dict[str, Any]:
    _check_keys("environment", given, Environment.__annotations__)
    environment: dict[str, Any] = {}
    if given.get("array") is not None:
        environment["array"] = media.add(given["array"], "environment.array")
    if given.get("images") is not None:
        pictures = _list("environment.images", given["images"])
        environment["images"] = [media.add(one, f"environment.images.{n}") for n, one in enumerate(pictures)]
    if (records := given.get("records")) is not None:
        if not isinstance(records, dict) or not all(isinstance(text, str) for pair in records.items() for text in pair):
            raise MoonflowError("environment.records is no dictionary of texts")
        environment["records"] = dict(records)
    return environment


def _check_keys(where: str, given: Any, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    if not isinstance(given, Mapping):
        raise MoonflowError(f"{where} is {_kind(given)}: give a dictionary of {', '.join(known)}")
    for key in given:
        if key not in known:
            raise MoonflowError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), known)} (known: {', '.join(known)})"
            )


def _list(where: str, given: Any) -> list[Any]:
    if not isinstance(given, list | tuple):
        raise MoonflowError(f"{where} is {_kind(given)}: give a list")
    return list(given)


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
