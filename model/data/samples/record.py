"""The JSON of a sample, as a user may have written it: the form of every field is checked where the sample is read.

``model.data.samples.sample.Sample`` says what the fields mean. Everything that is read from a shard goes through
``read_record``, so that a field of another type or name never reaches a trainer, where it could mean something else
(``"loss": "false"``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails, from_json
from typing_extensions import TypedDict

from model.boundary.errors import MoonflowError
from model.codec.declared_tools import DeclarationError, declare
from model.codec.tools import TOOLS
from model.data.samples.sample import Ability, Modality

STRICT = ConfigDict(strict=True, extra="forbid")
NAMED = 3  # faults of one record that its line names (ours: enough, and the line stays readable)

# Names of other formats -> what to write here.
RIGHT_FORM = {
    "image_url": 'write {"type": "image", "media": "png"} for the member KEY.png next to KEY.json',
    "input_image": 'write {"type": "image", "media": "png"} for the member KEY.png next to KEY.json',
    "video_url": 'write {"type": "video", "media": "mp4"} for the member KEY.mp4 next to KEY.json',
    "developer": 'write "system"',
    "function": 'write tool_calls as [{"name": ..., "arguments": {...}}], and a result\'s role as "tool"',
    "reasoning_content": 'write "reasoning"',
}
PLAINER = {"extra_forbidden": "unknown field", "missing": "missing field"}


def read_json(text: bytes, what: str) -> Any:
    """The value of a strict JSON text: no NaN, no lone surrogate, at most 200 levels deep, no key twice.

    Raises:
        MoonflowError: the text is not strict JSON; the message begins with ``what``.
    """
    text = text.removeprefix(b"\xef\xbb\xbf")
    try:
        value = from_json(text, allow_inf_nan=False)
        json.loads(text, object_pairs_hook=_with_each_key_once)  # of two equal keys, readers silently keep the last
        return value
    except ValueError as error:
        raise MoonflowError(f"{what}: not JSON ({error}); fix it or take it out") from None


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:80]!r} is given twice")
        seen.add(key)


def first_faults(error: ValidationError, right_form: Mapping[str, str] = RIGHT_FORM) -> str:
    """``segments.0.text.loss: Input should be a valid boolean``, and a few more of the faults, on one line.

    Args:
        right_form: names of other formats -> what to write instead.
    """
    faults = error.errors(include_url=False)
    faults.sort(key=lambda fault: not _right_form(fault, right_form))
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(_told(fault, right_form) for fault in faults[:NAMED]) + more


def _told(fault: ErrorDetails, right_form: Mapping[str, str]) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {PLAINER.get(fault['type'], fault['msg'])}{_right_form(fault, right_form)}"


def _right_form(fault: ErrorDetails, right_form: Mapping[str, str]) -> str:
    """What to write instead, in brackets, if the fault is a known form of another format."""
    found = str(fault.get("ctx", {}).get("tag", fault["loc"][-1] if fault["loc"] else ""))
    return f" ({right_form[found]})" if found in right_form else ""


def _object(value: Any) -> Any:
    """The object that a call's arguments mean: OpenAI writes them as a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"the text is not JSON ({error})") from None


def _declared(name: str) -> str:
    if name not in TOOLS:
        raise ValueError(f"unknown tool {name!r}; known are {', '.join(TOOLS)}")
    return name


def _declarable(tool: dict[str, Any]) -> dict[str, Any]:
    try:
        declare([tool])
    except DeclarationError as error:
        raise ValueError(str(error)) from None
    return tool


DeclaredTools = list[Annotated[dict[str, Any], AfterValidator(_declarable)]]


class Text(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    type: Literal["text"]
    text: str
    loss: bool


class TextPart(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    type: Literal["text"]
    text: str


class Image(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    type: Literal["image"]
    media: str


class Video(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    type: Literal["video"]
    media: str


Segment = Annotated[Text | Image | Video, Field(discriminator="type")]
Part = Annotated[TextPart | Image | Video, Field(discriminator="type")]


def _kind(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


# The tag makes one fault of a wrong content, instead of one for each form that it might have had.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(_kind),
]


class ToolCallRecord(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)]


class SystemOrUserMessage(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["system", "user"]
    content: Content


class AssistantMessage(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[Content | None]
    reasoning: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCallRecord] | None]
    loss: NotRequired[bool]


class ToolMessage(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["tool"]
    content: Content
    tool_call_id: NotRequired[str]


Message = Annotated[SystemOrUserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Environment(TypedDict):
    """What a task's tools act on. Records to search must be text; any other field is up to the tools."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    records: NotRequired[dict[str, str]]


class SampledEpisode(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    token_ids: list[int]
    sampled: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    reward: NotRequired[float]
    parts: NotRequired[dict[str, float]]
    task: NotRequired[str]
    round: NotRequired[int]
    seed: NotRequired[int]


class Record(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    key: str
    family: str
    ability: Ability
    modality: Modality
    source: str
    segments: NotRequired[list[Segment]]
    messages: NotRequired[list[Message]]
    tools: NotRequired[list[Annotated[str, AfterValidator(_declared)]]]
    declared_tools: NotRequired[DeclaredTools]
    answer: NotRequired[Any]
    reward: NotRequired[str]
    rubric: NotRequired[str]
    environment: NotRequired[Environment]
    episode: NotRequired[SampledEpisode]
    media: NotRequired[list[str]]


_RECORD = TypeAdapter(Record)


def read_record(text: bytes, where: str) -> Record:
    """The checked record of a sample's JSON text.

    Raises:
        MoonflowError: it is not JSON, or a field is missing, unknown or of another type; the message begins with
            ``where``.
    """
    content = read_json(text, where)
    if not isinstance(content, dict):
        raise MoonflowError(f"{where}: a sample must be a JSON object; see model/data/samples/sample.py")
    try:
        record = _RECORD.validate_python(content)
    except ValidationError as error:
        raise MoonflowError(f"{where}: {first_faults(error)}; see model/data/samples/sample.py") from None
    if record.get("segments") and record.get("messages"):
        raise MoonflowError(f"{where}: it has both segments and messages: make two samples of it")
    if record.get("episode") and not record.get("messages"):
        raise MoonflowError(
            f"{where}: it has an episode and no messages, which it begins with: add the task's messages"
        )
    return record
