from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.codec.chat import ToolCall
from model.swarm.chat.functions import function_tool
from model.swarm.chat.tools import Toolbox

TOOLS = '''
import asyncio, sys, time
from typing import Annotated, Literal
from pydantic import BaseModel, Field

class Box(BaseModel):
    x: int

def search(query: str, many: Annotated[int, Field(ge=1, description="how many")] = 3, *, box: Box | None = None) -> str:
    """Look up."""
    return f"{query} {many} {box.x if box else '-'}"

async def later(query: str) -> dict[str, str]:
    """Look up, later."""
    await asyncio.sleep(0.01)
    return {"found": query}

async def blocks(query: str) -> str:
    """Block the loop."""
    time.sleep(1)

def hangs(query: str) -> str:
    """Hang."""
    time.sleep(60)

def leaves(query: str) -> str:
    """Exit."""
    sys.exit(3)

async def leaves_later(query: str) -> str:
    """Exit."""
    raise KeyboardInterrupt

def silent(query: str) -> str:
    return query

def untyped(query) -> str:
    """Look up."""

def any_number(*queries: str) -> str:
    """Look up."""

def odd(query: "object()") -> str:
    """Look up."""

number = 3
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tools.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_tools", raising=False)


def called(name: str, timeout_s: float = 20.0, **arguments: object) -> str:
    toolbox = Toolbox([function_tool(f"own_tools:{name}")], timeout_s)
    return asyncio.run(toolbox.use(ToolCall("a", name, arguments)))


def test_the_signature_and_the_docstring_are_the_declaration() -> None:
    function = function_tool("own_tools:search").declaration["function"]
    assert (function["name"], function["description"]) == ("search", "Look up.")
    parameters = function["parameters"]
    assert parameters["required"] == ["query"] and parameters["additionalProperties"] is False
    many = {"default": 3, "description": "how many", "minimum": 1, "title": "Many", "type": "integer"}
    assert parameters["properties"]["many"] == many


def test_arguments_are_converted_and_results_are_text() -> None:
    assert called("search", query="lima", many="2", box={"x": 7}) == "lima 2 7"
    assert called("later", query="lima") == '{"found":"lima"}'


def test_arguments_that_do_not_fit_the_signature_are_told() -> None:
    told = called("search", many=0, other=1)
    assert told.startswith("error: search: ") and "query: Missing" in told and "many: Input should be" in told
    assert "other: Unexpected" in told


def test_functions_that_exit_hang_or_block_hold_up_nobody() -> None:
    began = time.monotonic()
    assert called("leaves", query="x").startswith("error: leaves: it raised SystemExit: 3 (line ")
    assert called("leaves_later", query="x").startswith("error: leaves_later: it raised KeyboardInterrupt")
    assert called("hangs", 0.1, query="x") == "error: hangs: it gave no answer in 0.1 s"
    assert called("blocks", 0.1, query="x") == "error: blocks: it gave no answer in 0.1 s"
    assert time.monotonic() - began < 30
    assert called("later", query="lima") == '{"found":"lima"}', "the loop of async functions goes on"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("own_tools", "give module:function"),
        ("own_tools:serch", "did you mean search"),
        ("nowhere:search", "PYTHONPATH"),
        ("own_tools:number", "is no function"),
        ("own_tools:Box", "is no function"),
        ("own_tools:silent", "has no docstring"),
        ("own_tools:untyped", "parameter query has no type"),
        ("own_tools:any_number", "have no JSON Schema"),
        ("own_tools:odd", "have no JSON Schema"),
    ],
)
def test_a_function_that_is_no_tool_is_refused_in_one_line(spec: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=told) as refused:
        function_tool(spec)
    assert len(str(refused.value).splitlines()) == 1
