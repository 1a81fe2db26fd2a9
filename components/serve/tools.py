"""A caller's tools as the chat template declares them: a TypeScript namespace (source: the released chat template)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from components.serve.errors import bad_request
from model.chat import TOOLS, DeclaredTool

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


def declare(tools: Sequence[dict[str, Any]]) -> list[str | DeclaredTool]:
    """What the template is to declare. A tool that the model was trained with keeps its trained words when the caller
    gives only its name.

    Raises:
        ApiError: a tool without a proper name, or two of one name.
    """
    declared: list[str | DeclaredTool] = []
    names: set[str] = set()
    for index, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if tool.get("type", "function") != "function" or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise bad_request(
                "a tool needs type function and function.name of letters, digits, _ and -", f"tools.{index}"
            )
        if name in names:
            raise bad_request(f"two tools are named {name!r}; give each its own name", f"tools.{index}.function.name")
        names.add(name)
        assert isinstance(function, dict)
        described = function.get("description") or (function.get("parameters") or {}) not in ({}, {"type": "object"})
        declared.append(name if name in TOOLS and not described else DeclaredTool(name, _typescript(name, function)))
    return declared


def _typescript(name: str, function: dict[str, Any]) -> str:
    description = str(function.get("description") or "")
    lines = [f"// {line}".rstrip() for line in description.splitlines()]
    return "\n".join([*lines, f"type {name} = (_: {_type(function.get('parameters') or {}, 0)}) => any;", ""])


def _type(schema: Any, depth: int) -> str:
    """A JSON Schema's type; what it says beyond TypeScript's types is left out."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return "any"
    if isinstance(schema.get("enum"), list):
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"]) or "any"
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return " | ".join(dict.fromkeys(_type(option, depth + 1) for option in schema[key])) or "any"
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_type({**schema, "type": one}, depth + 1) for one in kind) or "any"
    if kind == "array" and "items" in schema:
        items = _type(schema["items"], depth + 1)
        return f"({items})[]" if "|" in items else f"{items}[]"
    if isinstance(schema.get("properties"), dict):
        return _object(schema["properties"], schema.get("required"), depth)
    if kind is None or depth == 0:
        return "{}" if depth == 0 else "any"
    return _PRIMITIVES.get(kind, "any")


def _object(properties: dict[str, Any], required: Any, depth: int) -> str:
    needed = set(required) if isinstance(required, list) else set()
    fields = ", ".join(
        f"{name}{'' if name in needed else '?'}: {_type(schema, depth + 1)}" for name, schema in properties.items()
    )
    return f"{{{fields}}}"
