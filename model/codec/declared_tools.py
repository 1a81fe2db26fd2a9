"""Tools of others as the chat template declares them, in TypeScript (source: the released chat template).

A server's caller and a user's conversations declare tools in OpenAI's form. Both are written here, so that a model is
served with the very words that it was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.boundary import strict_json
from model.boundary.errors import MoonflowError
from model.codec.tools import TOOLS, DeclaredTool

MAX_TOOLS = 128  # of a conversation (source: OpenAI's API reference)
MAX_DECLARATION_CHARACTERS = 2**17  # of all tools of a conversation, as the chat template writes them (ours)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_PRIMITIVES = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "object",
    "array": "any[]",
}
_MAX_DEPTH = 8  # deeper types are written as any (ours)


class DeclarationError(MoonflowError):
    """A tool that cannot be declared; ``field`` is where in the list of tools it is wrong, as ``tools.0.function``."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def declare(tools: Sequence[Mapping[str, Any]]) -> list[str | DeclaredTool]:
    """The declarations for the chat template. A tool that the model was trained with keeps its trained text if the
    caller gives only its name.

    Args:
        tools: in OpenAI's form, ``{"type": "function", "function": {"name": ..., "parameters": ...}}``.

    Raises:
        DeclarationError: too many tools, one without a proper name, two of one name, a schema that is none, or more
            text than MAX_DECLARATION_CHARACTERS.
    """
    if len(tools) > MAX_TOOLS:
        raise DeclarationError(f"there are {len(tools)} tools; give at most {MAX_TOOLS}", "tools")
    declared: list[str | DeclaredTool] = []
    names: set[str] = set()
    room = _Room()
    for index, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if tool.get("type", "function") != "function" or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DeclarationError(
                "a tool needs type function and function.name of letters, digits, _ and -", f"tools.{index}"
            )
        if name in names:
            raise DeclarationError(
                f"two tools are named {name!r}; give each its own name", f"tools.{index}.function.name"
            )
        names.add(name)
        assert isinstance(function, dict)
        description = _or_empty(function, "description", "", "a string", index)
        parameters = _or_empty(function, "parameters", {}, "a JSON Schema, an object", index)
        if name in TOOLS and not description and parameters in ({}, {"type": "object"}):
            declared.append(name)
            continue
        lines = [room.take(f"// {line}".rstrip() + "\n") for line in description.splitlines()]
        type_ = _Schema(room, f"tools.{index}.function.parameters").type(parameters, 0)
        declared.append(DeclaredTool(name, "".join(lines) + f"type {name} = (_: {type_}) => any;\n"))
    return declared


def _or_empty(function: dict[str, Any], key: str, empty: Any, kind: str, index: int) -> Any:
    value = function.get(key)
    if value is not None and not isinstance(value, type(empty)):
        raise DeclarationError(f"a tool's {key} must be {kind}", f"tools.{index}.function.{key}")
    return empty if value is None else value


class _Room:
    """The characters that the declarations of a conversation may still have."""

    def __init__(self) -> None:
        self._left = MAX_DECLARATION_CHARACTERS

    def take(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            told = f"the tools' declarations have more than {MAX_DECLARATION_CHARACTERS:,} characters"
            raise DeclarationError(f"{told}; give fewer tools or shorter schemas", "tools")
        return text


class _Schema:
    """Writes JSON Schemas as types. Every part of a schema is written once and counted, so the work is linear in the
    allowed length."""

    def __init__(self, room: _Room, where: str) -> None:
        self._room = room
        self._where = where

    def type(self, schema: Any, depth: int) -> str:
        """A JSON Schema's type; what it says beyond TypeScript's types is left out."""
        take = self._room.take
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return take("any")
        if (values := self._list(schema, "enum")) is not None:
            return " | ".join(take(self._json(value)) for value in values) or take("any")
        if "const" in schema:
            return take(self._json(schema["const"]))
        for key in ("anyOf", "oneOf"):
            if (options := self._list(schema, key)) is not None:
                return self._union(self.type(option, depth + 1) for option in options)
        kind = schema.get("type")
        if isinstance(kind, list):
            # Only an object has properties and only an array has items, so that none of them is written twice.
            kinds = dict.fromkeys(self._name(one) for one in kind)
            return self._union(
                self.type({**schema, "type": one}, depth + 1) if one in ("object", "array") else self._primitive(one)
                for one in kinds
            )
        if kind is not None:
            self._name(kind)
        if kind == "array" and "items" in schema:
            items = self.type(schema["items"], depth + 1)
            return f"({items})[]" if "|" in items else f"{items}[]"
        if kind != "array" and schema.get("properties") is not None:
            return self._object(schema["properties"], self._list(schema, "required") or [], depth)
        if depth == 0:
            return take("{}")
        return self._primitive(kind)

    def _object(self, properties: Any, required: list[Any], depth: int) -> str:
        if not isinstance(properties, dict):
            raise DeclarationError("a schema's properties must be an object", self._where)
        if not all(isinstance(name, str) for name in required):
            raise DeclarationError("a schema's required must be a list of names", self._where)
        needed = set(required)
        fields = ", ".join(
            self._room.take(f"{name}{'' if name in needed else '?'}: ") + self.type(schema, depth + 1)
            for name, schema in properties.items()
        )
        return f"{{{fields}}}"

    def _primitive(self, kind: str | None) -> str:
        return self._room.take(_PRIMITIVES.get(kind, "any") if kind is not None else "any")

    def _union(self, types: Iterable[str]) -> str:
        return " | ".join(dict.fromkeys(types)) or self._room.take("any")

    def _list(self, schema: dict[str, Any], key: str) -> list[Any] | None:
        value = schema.get(key)
        if value is not None and not isinstance(value, list):
            raise DeclarationError(f"a schema's {key} must be a list", self._where)
        return value

    def _name(self, kind: Any) -> str:
        if not isinstance(kind, str):
            raise DeclarationError("a schema's type must be a name or a list of names", self._where)
        return kind

    def _json(self, value: Any) -> str:
        try:
            return strict_json.write(value)
        except ValueError as error:
            raise DeclarationError(f"a schema holds a value that JSON cannot: {error}", self._where) from error
