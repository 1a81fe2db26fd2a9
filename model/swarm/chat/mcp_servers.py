"""Tools of an MCP server: a command (stdio) or a URL (streamable HTTP) (source: the Model Context Protocol, which the
official ``mcp`` package speaks).

Each server has a task of its own, so that one that breaks ends nothing else; its tools then answer with an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TextIO, cast

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from pydantic_core import to_json

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown
from model.swarm.chat.tools import Tool, ToolError

START_S = 60.0  # until a server has told its tools (ours)
CLOSE_S = 10.0  # until its task is given up; the package itself ends a process after 7 s at most
MAX_PAGES = 20  # of a list of tools

logging.getLogger("mcp").addHandler(logging.NullHandler())  # what a server does wrong is told once, as an error


@asynccontextmanager
async def mcp_tools(spec: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[list[Tool]]:
    """The tools of a server, which runs, or is connected, meanwhile.

    Args:
        spec: a command with its arguments, or a URL.
        environment: of the command; by default that of this process.

    Raises:
        MoonflowError: it does not start, or is no MCP server.
    """
    ready: asyncio.Future[list[Tool]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    with tempfile.TemporaryFile("w+", errors="replace") as opened:
        log = cast(TextIO, opened)
        server = _server(spec, log, dict(os.environ if environment is None else environment))
        host = asyncio.create_task(_host(spec, server, ready, stop))
        try:
            both: set[asyncio.Future[Any]] = {host, ready}
            await asyncio.wait(both, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise MoonflowError(f"--mcp {shown(spec)} does not start: {_reason(host, log)}")
            yield ready.result()
        finally:
            stop.set()
            await asyncio.wait({host}, timeout=CLOSE_S)
            host.cancel()


def _server(spec: str, log: TextIO, environment: dict[str, str]) -> Any:
    if spec.startswith(("http://", "https://")):
        return spec
    try:
        command, *arguments = shlex.split(spec)
    except ValueError as error:
        raise MoonflowError(f"--mcp {shown(spec)}: give a command or a URL ({error})") from None
    return stdio_client(StdioServerParameters(command=command, args=arguments, env=environment), errlog=log)


async def _host(spec: str, server: Any, ready: asyncio.Future[list[Tool]], stop: asyncio.Event) -> None:
    """Keep the connection until ``stop``."""
    async with Client(server) as client:
        tools, cursor = [], None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += [_tool(client, one, spec) for one in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        if not ready.done():
            ready.set_result(tools)
        await stop.wait()


def _tool(client: Client, listed: Any, spec: str) -> Tool:
    async def run(arguments: dict[str, Any]) -> str:
        result = await client.call_tool(listed.name, arguments)
        text = "\n".join(_text(block) for block in result.content)
        if not result.content and result.structured_content is not None:
            text = to_json(result.structured_content).decode()
        if result.is_error:
            raise ToolError(" ".join(text.split()))
        return text

    return Tool(listed.name, listed.description or listed.name, listed.input_schema, run)


def _text(block: Any) -> str:
    """A part of a result; of one that is no text, its kind."""
    if block.type == "text":
        return str(block.text)
    resource = getattr(block, "resource", None)
    return str(getattr(resource, "text", f"[{block.type}]"))


def _reason(host: asyncio.Task[None], log: TextIO) -> str:
    """Why there are no tools: what the server wrote last, else what was raised."""
    log.seek(0)
    if lines := [line for line in log.read().splitlines() if line.strip()]:
        return shown(lines[-1].strip(), 300)
    if not host.done():
        return f"it told no tools in {START_S:g} s"
    error: BaseException | None = None if host.cancelled() else host.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return shown(" ".join(f"{type(error).__name__}: {error}".split()), 300)
