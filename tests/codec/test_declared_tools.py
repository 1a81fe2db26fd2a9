"""Declared tools as the template writes them."""

from __future__ import annotations

import math
import time

import pytest

from model.codec.declared_tools import DeclarationError, declare
from model.codec.tools import DeclaredTool


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
    ({"type": ["object", "null"], "properties": {"b": {"type": "boolean"}}}, "{b?: boolean} | null"),
    ({"type": ["array", "object", "array"], "items": {"type": "null"}, "properties": {}}, "null[] | {}"),
    ({"type": "object", "properties": None, "required": None, "enum": None}, "object"),
    ({"enum": ["\ud83d"]}, '"\ufffd"'),
])  # fmt: skip
def test_a_json_schema_becomes_a_typescript_type(schema: dict, typescript: str):
    assert typed(a=schema) == f"{{a: {typescript}}}"


def test_a_schema_without_end_ends():
    schema: dict = {"type": "object"}
    schema["properties"] = {"a": schema}
    assert typed(a=schema).count("{") < 12


def test_types_in_types_are_written_once():
    schema: dict = {"type": "integer"}
    for _ in range(4):
        schema = {"type": ["object", "array"] * 20, "properties": {"a": schema}, "items": schema}
    began = time.perf_counter()
    assert len(typed(a=schema)) < 1000
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize("schema", [
    {"enum": ["x" * 100] * 2000},
    {"const": [[1] * 1000] * 100},
    {"anyOf": [{}] * 50_000},
    {"type": "object", "properties": {f"p{n}": {} for n in range(20_000)}},
    {"type": "object", "properties": {"x" * 2**17: {}}},
])  # fmt: skip
def test_declarations_have_a_bound(schema: dict):
    with pytest.raises(DeclarationError, match="more than 131,072 characters"):
        declare([tool("f", type="object", properties={"a": schema})])


def test_the_bound_is_that_of_all_tools_together():
    assert len(declare([tool("f", "x" * 100_000)])) == 1
    with pytest.raises(DeclarationError, match="more than 131,072 characters"):
        declare([tool("f", "x" * 100_000), tool("g", "x" * 100_000)])
    with pytest.raises(DeclarationError, match="at most 128"):
        declare([tool(f"f{n}") for n in range(129)])


@pytest.mark.parametrize("schema", [
    {"type": {}},
    {"type": [["string"]]},
    {"type": 1},
    {"properties": []},
    {"properties": {}, "required": [["x"]]},
    {"properties": {}, "required": "x"},
    {"enum": {"a": 1}},
    {"enum": [math.nan]},
    {"enum": [[{"a": math.inf}]]},
    {"const": 10**5000},
    {"anyOf": {}},
    {"oneOf": "x"},
])  # fmt: skip
def test_a_schema_that_is_none_is_told(schema: dict):
    with pytest.raises(DeclarationError, match="a schema") as told:
        typed(a=schema)
    assert told.value.field == "tools.0.function.parameters"


@pytest.mark.parametrize("tools", [
    [{"type": "function", "function": {"name": "x", "description": {}, "parameters": {}}}],
    [{"type": "function", "function": {"name": "x", "description": ["a"]}}],
    [{"type": "function"}],
    [{"type": "function", "function": {"name": "no spaces"}}],
    [{"type": "retrieval", "function": {"name": "x"}}],
    [tool("x"), tool("x")],
])  # fmt: skip
def test_an_impossible_tool_is_told(tools: list[dict]):
    with pytest.raises(DeclarationError) as told:
        declare(tools)
    assert told.value.field.startswith("tools.")
