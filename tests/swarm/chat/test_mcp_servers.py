from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from model.boundary.errors import MoonflowError
from model.codec.chat import ToolCall
from model.swarm.chat.mcp_servers import mcp_tools
from model.swarm.chat.tools import Toolbox
from tests.http_server import free_port, nobody
from tests.waiting import happens

PROGRAM = Path(__file__).with_name("mcp_program.py")


def used(spec: str, *countries: str, timeout_s: float = 30.0) -> tuple[list[str], list[str]]:
    """The names of a server's tools, and what its tool returns for each country."""

    async def calls() -> tuple[list[str], list[str]]:
        async with mcp_tools(spec) as tools:
            toolbox = Toolbox(tools, timeout_s)
            names = [each["function"]["name"] for each in toolbox.declarations(swarm=False)]
            asked = [ToolCall(str(n), "capital", {"country": country}) for n, country in enumerate(countries)]
            return names, [await toolbox.use(call) for call in asked]

    return asyncio.run(calls())


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_tools_of_a_process_are_used_and_it_ends_with_them(tmp_path: Path) -> None:
    spec = shlex.join([sys.executable, str(PROGRAM), str(tmp_path / "pid")])
    names, (peru, atlantis, huge, nowhere, after) = used(spec, "Peru", "Atlantis", "huge", "nowhere", "Peru")
    assert names == ["capital"] and peru == "Lima"
    assert atlantis.startswith("error: capital: Error executing tool")
    assert huge.endswith("[cut: the tool returned 2,000,000 characters]")
    assert nowhere.startswith("error: capital: ") and after.startswith("error: capital: "), "it has died"
    assert happens(lambda: ended(int((tmp_path / "pid").read_text())), 10)


@pytest.mark.slow
def test_a_server_over_http_is_used(tmp_path: Path) -> None:
    port = free_port()
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tmp_path / "pid"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/mcp"

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=5).status_code > 0
        except httpx.TransportError:
            return False

    try:
        assert happens(answers, 60)
        assert used(url, "Peru") == (["capital"], ["Lima"])
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("no-such-program-anywhere", "does not start: .*no-such-program-anywhere"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"wrong key\")'", "does not start: wrong key"),
        ("'open", "give a command or a URL"),
    ],
)
def test_a_server_that_does_not_start_is_named_in_one_line(spec: str, told: str) -> None:
    began = time.monotonic()
    with pytest.raises(MoonflowError, match=told) as refused:
        used(spec)
    assert len(str(refused.value).splitlines()) == 1 and time.monotonic() - began < 60


def test_an_address_where_nobody_listens_is_named() -> None:
    with nobody() as url, pytest.raises(MoonflowError, match="does not start: "):
        used(f"{url}/mcp")
