"""A user's conversation, one line of JSON in OpenAI's form of chats and fine-tuning data, as a sample.

Source: the API reference of chat completions (messages, tools) and the fine-tuning guide (``weight``);
``reasoning_content`` is DeepSeek's and Moonshot's. The chat template's numbers replace the caller's ids of tool calls.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from model.boundary import strict_json
from model.boundary.errors import MoonflowError, Unavailable
from model.codec.chat import call_id
from model.codec.declared_tools import declare
from model.codec.image import ImageConfig, image_grid
from model.data.samples.record import STRICT, DeclaredTools, TextPart, first_faults, read_json
from model.data.samples.sample import Sample
from model.data.user.image_folder import IMAGES

# Bounds of one line (ours). What is larger fits no row of today, and might fill the memory.
MAX_CHARACTERS = 2**22  # of all texts
MAX_WORD = 2**16  # characters without white space, digit or punctuation; no language has such words
MAX_MEDIA_BYTES = 2**28  # of all images as files
MAX_PATCHES = 2**18  # of all images as the model sees them: 65,536 tokens, 617 MB

FORM = 'write {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
IMAGE_FORM = 'write {"type": "image_url", "image_url": {"url": "pictures/cat.png"}}'
RIGHT_FORM = {
    "image": IMAGE_FORM,
    "input_image": IMAGE_FORM,
    "input_text": 'write {"type": "text", "text": ...}',
    "video_url": "only images are read",
    "reasoning": 'write "reasoning_content"',
    "function": 'write "tool_calls" in the call, and "tool" as the role of its result',
    "function_call": 'write "tool_calls"',
}
_WORD = re.compile(r"[^\s0-9.,;:!?。，、；：！？]+")
_DATA_HEAD = 200  # characters in which a data URL's ;base64, must stand


def _switch(value: Any) -> bool:
    if not isinstance(value, int | float) or value not in (0, 1):
        raise ValueError("it must be 0 (no loss) or 1")
    return bool(value)


def _arguments(value: Any) -> Any:
    """The object that a call's arguments mean: OpenAI writes them as a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return strict_json.read(value)
    except ValueError as error:
        raise ValueError(f"the text is not JSON ({error})") from None


class ImageUrl(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    url: str
    detail: NotRequired[str | None]


class ImagePart(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    type: Literal["image_url"]
    image_url: ImageUrl


def _kind(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


# The tag makes one fault of a wrong content, instead of one for each form that it might have had.
Texts = Annotated[Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("parts")], Discriminator(_kind)]
Shown = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Tag("parts")],
    Discriminator(_kind),
]
Switch = Annotated[Any, AfterValidator(_switch)]


class Function(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
    arguments: Annotated[dict[str, Any], BeforeValidator(_arguments)]


class Call(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    type: NotRequired[Literal["function"]]
    function: Function


class SystemMessage(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["system", "developer"]
    content: Texts
    name: NotRequired[str | None]


class UserMessage(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["user"]
    content: Shown
    name: NotRequired[str | None]


class AssistantMessage(TypedDict):
    """The fields that may only be null are those of an API's answer that its user saved as it came."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[Texts | None]
    reasoning_content: NotRequired[str | None]
    tool_calls: NotRequired[list[Call] | None]
    weight: NotRequired[Switch]
    loss: NotRequired[Switch]
    name: NotRequired[str | None]
    refusal: NotRequired[None]
    audio: NotRequired[None]
    function_call: NotRequired[None]
    annotations: NotRequired[list[Any] | None]


class ToolMessage(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["tool"]
    content: Shown
    tool_call_id: str
    name: NotRequired[str | None]


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Line(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: NotRequired[DeclaredTools | None]


_LINE = TypeAdapter(Line)


def read_line(line: bytes, where: str, key: str, read: Callable[[str], bytes]) -> tuple[Sample, set[str]]:
    """The conversation of one line, and the names of the keys that are not read.

    Args:
        where: file and number of the line, for messages.
        key: of the sample.
        read: the content of an image by its path as the line has it; MoonflowError says why it cannot be read.

    Raises:
        MoonflowError: what is wrong with the line; begins with ``where``.
        Unavailable: as ``read``.
    """
    content = read_json(line, where)
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise MoonflowError(f"{where}: it has no messages: {FORM}")
    known = {name: content[name] for name in Line.__annotations__ if name in content}
    try:
        checked = _LINE.validate_python(known)
    except ValidationError as error:
        raise MoonflowError(f"{where}: {first_faults(error, RIGHT_FORM)}") from None
    try:
        return _sample(checked, key, read), set(content) - set(known)
    except Unavailable:
        raise
    except MoonflowError as error:
        raise MoonflowError(f"{where}: {error}") from None


def _sample(line: Line, key: str, read: Callable[[str], bytes]) -> Sample:
    images = _Images(read)
    turns = _turns(line["messages"], images)
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise MoonflowError("it has no assistant message, so there is nothing to train on: add the answer")
    if not any(turn.get("loss", True) for turn in answers):
        raise MoonflowError('every assistant message has weight 0: give the answers to train on "weight": 1')
    tools = line.get("tools") or []
    declare(tools)
    _check_size(turns)
    calls = bool(tools) or any(turn.get("tool_calls") for turn in answers)
    return Sample(
        key, "conversations", "agentic" if calls else "knowledge", "image" if images.files else "text",
        _unit(turns, images.files), messages=turns, declared_tools=tools, media=images.files,
    )  # fmt: skip


def _turns(messages: Sequence[Mapping[str, Any]], images: _Images) -> list[dict[str, Any]]:
    """The messages as ``model.codec.chat`` renders them."""
    turns: list[dict[str, Any]] = []
    pending: dict[str, list[str]] = {}  # the line's id -> ours, of the calls that wait for results
    calls = 0
    for index, message in enumerate(messages):
        where, role = f"messages.{index}", message["role"]
        turn: dict[str, Any] = {"role": role, "content": images.shown(message.get("content") or "", where)}
        if role == "developer":
            turn["role"] = "system"
        elif role == "assistant":
            made = message.get("tool_calls") or []
            if not turn["content"] and not made:
                raise MoonflowError(f"{where}: it has neither content nor tool_calls: write one, or take it out")
            turn |= _told(message, where)
            if made:
                turn["tool_calls"] = [{name: call["function"][name] for name in ("name", "arguments")} for call in made]
            pending = {}
            for call in made:
                pending.setdefault(call["id"], []).append(call_id(call["function"]["name"], calls))
                calls += 1
        elif role == "tool":
            waiting = pending.get(message["tool_call_id"])
            if not waiting:
                known = ", ".join(repr(one) for one, ours in pending.items() if ours) or "none"
                raise MoonflowError(
                    f"{where}: tool_call_id {message['tool_call_id']!r} answers no call of the assistant message "
                    f"before it; the calls waiting for results are {known}"
                )
            turn["tool_call_id"] = waiting.pop(0)
        turns.append(turn)
    return turns


def _told(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The assistant's thinking, and whether the message is left out of the loss."""
    told: dict[str, Any] = {}
    if message.get("reasoning_content"):
        told["reasoning"] = message["reasoning_content"]
    switches = {message[name] for name in ("weight", "loss") if name in message}
    if len(switches) > 1:
        raise MoonflowError(f"{where}: weight and loss say different things: take one out")
    if switches == {False}:
        told["loss"] = False
    return told


class _Images:
    """The images of one line.

    Attributes:
        files: contents by the names that the turns give them.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self.files: dict[str, bytes] = {}
        self._read = read
        self._names: dict[str, str] = {}
        self._patches: dict[str, int] = {}
        self._shown = self._bytes = 0

    def shown(self, content: str | list[dict[str, Any]], where: str) -> str | list[dict[str, Any]]:
        """The content of a turn. MoonflowError says which image cannot be used."""
        if isinstance(content, str):
            return content
        try:
            return [part if part["type"] == "text" else self._part(part["image_url"]["url"]) for part in content]
        except Unavailable:
            raise
        except MoonflowError as error:
            raise MoonflowError(f"{where}: {error}") from None

    def _part(self, url: str) -> dict[str, Any]:
        name = self._names.get(url) or self._add(url)
        self._shown += self._patches[name]
        if self._shown > MAX_PATCHES:
            raise MoonflowError(f"the images up to here have more than {MAX_PATCHES:,} patches: give fewer or smaller")
        return {"type": "image", "media": name}

    def _add(self, url: str) -> str:
        data, extension = _of_data_url(url) if url[:5].lower() == "data:" else self._of_path(url)
        self._bytes += len(data)
        if self._bytes > MAX_MEDIA_BYTES:
            raise MoonflowError(f"the images up to here have more than {MAX_MEDIA_BYTES >> 20} MiB: give smaller ones")
        try:
            _, rows, columns = image_grid(data, ImageConfig())
        except MoonflowError as error:
            raise MoonflowError(f"{url[:80]!r}: {error}") from None
        name = f"{len(self.files)}.{extension if f'.{extension}' in IMAGES else 'image'}"
        self.files[name], self._names[url], self._patches[name] = data, name, rows * columns
        return name

    def _of_path(self, url: str) -> tuple[bytes, str]:
        if "://" in url:
            raise MoonflowError(f"image {url[:200]!r} is an address: save the image next to the file and name its path")
        return self._read(url), url.rpartition(".")[2].lower()


def _of_data_url(url: str) -> tuple[bytes, str]:
    head, mark, text = url[:_DATA_HEAD].partition(";base64,")
    if not mark:
        raise MoonflowError(f"image {url[:80]!r} is a data URL of another form: write data:image/png;base64,...")
    try:
        return base64.b64decode(text + url[_DATA_HEAD:], validate=True), head.rpartition("/")[2].lower()
    except (binascii.Error, ValueError) as error:
        raise MoonflowError(f"image {url[:40]!r}... is not valid base64 ({error}): encode it again") from None


def _check_size(turns: Sequence[Mapping[str, Any]]) -> None:
    texts = [text for turn in turns for text in _texts(turn)]
    if (characters := sum(map(len, texts))) > MAX_CHARACTERS:
        raise MoonflowError(f"its texts have {characters:,} characters: give at most {MAX_CHARACTERS:,}")
    if any(len(word[0]) > MAX_WORD for text in texts for word in _WORD.finditer(text)):
        told = f"a text has a word of more than {MAX_WORD:,} characters without space, digit or punctuation"
        raise MoonflowError(f"{told}: break it up")


def _texts(turn: Mapping[str, Any]) -> list[str]:
    content = turn["content"]
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    arguments = [json.dumps(call["arguments"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return [*parts, turn.get("reasoning", ""), *arguments]


def _unit(turns: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]) -> str:
    """What is trained on or held out as one: a digest of the turns before the first answer, so that two answers to
    one question are on the same side. Of the whole conversation, if no question comes first."""
    roles = [turn["role"] for turn in turns]
    prompt = turns[: roles.index("assistant")]
    asked = prompt if any(turn["role"] == "user" for turn in prompt) else turns
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for turn in asked:
        if not isinstance(turn["content"], str):
            for part in turn["content"]:
                digest.update(hashlib.sha256(files.get(part.get("media", ""), b"")).digest())
    return digest.hexdigest()[:16]
