"""A real MCP server: ``python mcp_program.py PIDFILE [PORT]``, over stdio, or over HTTP on a port of this machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("capitals")


@server.tool()
def capital(country: str) -> str:
    """The capital of a country."""
    if country == "Atlantis":
        raise ValueError("no such country")
    if country == "nowhere":
        os._exit(3)
    if country == "far":
        time.sleep(60)
    return {"Peru": "Lima", "huge": "x" * 2_000_000}.get(country, "?")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(str(os.getpid()))
    if len(sys.argv) > 2:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run("stdio")
