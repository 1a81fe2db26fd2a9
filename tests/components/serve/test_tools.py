"""Declared tools as the template writes them."""

from __future__ import annotations

import pytest

from components.serve.errors import ApiError
from components.serve.tools import declare
from model.chat import DeclaredTool


def tool(name: str, description: str | None = None, **schema) -> dict:
    function = {"name": name, "parameters": schema}
    return {"type": "function", "function": function | ({"description": description} if description else {})}


def typed(**properties) -> str:
    (declared,) = declare([tool("f", type="object", properties=properties, required=["a"])])
    assert isinstance(declared, DeclaredTool)
    return declared.typescript.removeprefix("type f = (_: ").removesuffix(") => any;\n")


def test_a_trained_tool_given_by_name_keeps_its_trained_words():
    assert declare([tool("search"), tool("ipython", type="object")]) == ["search", "ipython"]


def test_the_callers_own_words_count_where_there_are_any():
    (declared,) = declare([tool("search", "Find a page.\nSlowly.", type="object", properties={"url": {}})])
    assert declared == DeclaredTool("search", "// Find a page.\n// Slowly.\ntype search = (_: {url?: any}) => any;\n")


@pytest.mark.parametrize(("schema", "typescript"), [
    ({"type": "string"}, "string"),
    ({"type": "integer"}, "number"),
    ({"type": ["string", "null"]}, "string | null"),
    ({"enum": ["x", 1]}, '"x" | 1'),
    ({"const": "x"}, '"x"'),
    ({"type": "array", "items": {"type": "number"}}, "number[]"),
    ({"type": "array", "items": {"enum": ["a", "b"]}}, '("a" | "b")[]'),
    ({"anyOf": [{"type": "string"}, {"type": "boolean"}]}, "string | boolean"),
    ({"type": "object", "properties": {"b": {"type": "boolean"}}}, "{b?: boolean}"),
    ({"$ref": "#/x"}, "any"),
])  # fmt: skip
def test_a_json_schema_becomes_a_typescript_type(schema: dict, typescript: str):
    assert typed(a=schema) == f"{{a: {typescript}}}"


def test_a_schema_without_end_ends():
    schema: dict = {"type": "object"}
    schema["properties"] = {"a": schema}
    assert typed(a=schema).count("{") < 12


@pytest.mark.parametrize("tools", [
    [{"type": "function"}],
    [{"type": "function", "function": {"name": "no spaces"}}],
    [{"type": "retrieval", "function": {"name": "x"}}],
    [tool("x"), tool("x")],
])  # fmt: skip
def test_an_impossible_tool_is_told(tools: list[dict]):
    with pytest.raises(ApiError) as told:
        declare(tools)
    assert told.value.status == 400 and (told.value.param or "").startswith("tools.")
