"""The json of a sample, as a user may have written it: every field's form, checked where the sample is read.

``model.data.sample.Sample`` says what the fields mean. All that is read from a shard comes through ``read_record``, so
that a field of another type or name never reaches a trainer, where it could mean something else (``"loss": "false"``).
"""

from __future__ import annotations

import json
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

from model.chat import TOOLS
from model.data.sample import Ability, Modality
from model.errors import MoonflowError

STRICT = ConfigDict(strict=True, extra="forbid")
NAMED = 3  # faults of one record that its line names (ours: a line should stay readable)

# What other formats call what we write otherwise.
RIGHT_FORM = {
    "image_url": 'write {"type": "image", "media": "png"} for the member KEY.png beside KEY.json',
    "input_image": 'write {"type": "image", "media": "png"} for the member KEY.png beside KEY.json',
    "video_url": 'write {"type": "video", "media": "mp4"} for the member KEY.mp4 beside KEY.json',
    "developer": 'write "system"',
    "function": "write tool_calls as [{\"name\": ..., \"arguments\": {...}}], and a result's role as \"tool\"",
    "reasoning_content": 'write "reasoning"',
}
PLAINER = {"extra_forbidden": "unknown field", "missing": "missing field"}


def read_json(text: bytes, what: str) -> Any:
    """A JSON text by the letter of its standard: no NaN, no lone surrogate, at most 200 levels deep, no key twice.

    Raises:
        MoonflowError: it is not; begins with ``what``.
    """
    text = text.removeprefix(b"\xef\xbb\xbf")
    try:
        value = from_json(text, allow_inf_nan=False)
        json.loads(text, object_pairs_hook=_with_each_key_once)  # of two, readers keep the last without a word
        return value
    except ValueError as error:
        raise MoonflowError(f"{what}: not JSON ({error}); mend it or take it out") from None


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} stands there twice")


def first_faults(error: ValidationError) -> str:
    """``segments.0.text.loss: Input should be a valid boolean``, and a few more of the faults, on one line."""
    faults = error.errors(include_url=False)
    faults.sort(key=lambda fault: not _right_form(fault))
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(map(_told, faults[:NAMED])) + more


def _told(fault: ErrorDetails) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {PLAINER.get(fault['type'], fault['msg'])}{_right_form(fault)}"


def _right_form(fault: ErrorDetails) -> str:
    """What to write instead, in brackets, if the fault is a known form of others."""
    found = str(fault.get("ctx", {}).get("tag", fault["loc"][-1] if fault["loc"] else ""))
    return f" ({RIGHT_FORM[found]})" if found in RIGHT_FORM else ""


def _object(value: Any) -> Any:
    """OpenAI writes a call's arguments as a JSON text; it means the object."""
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


# One fault for a content, not one for each form that it might have had.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(_kind),
]


class Call(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)]


class Said(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["system", "user"]
    content: Content


class Answered(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[Content | None]
    reasoning: NotRequired[str | None]
    tool_calls: NotRequired[list[Call] | None]
    loss: NotRequired[bool]


class Returned(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    role: Literal["tool"]
    content: Content
    tool_call_id: NotRequired[str]


Message = Annotated[Said | Answered | Returned, Field(discriminator="role")]


class Environment(TypedDict):
    """What is searched must be text; what else a task's tools need is theirs to know."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    records: NotRequired[dict[str, str]]


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
    answer: NotRequired[Any]
    reward: NotRequired[str]
    environment: NotRequired[Environment]
    media: NotRequired[list[str]]


_RECORD = TypeAdapter(Record)


def read_record(text: bytes, where: str) -> Record:
    """A sample's json.

    Raises:
        MoonflowError: it is not JSON, or a field is missing, unknown or of another type; begins with ``where``.
    """
    content = read_json(text, where)
    if not isinstance(content, dict):
        raise MoonflowError(f"{where}: a sample must be a JSON object; see model/data/sample.py")
    try:
        record = _RECORD.validate_python(content)
    except ValidationError as error:
        raise MoonflowError(f"{where}: {first_faults(error)}; see model/data/sample.py") from None
    if record.get("segments") and record.get("messages"):
        raise MoonflowError(f"{where}: it has both segments and messages, and only one can be trained on: make it two")
    return record
