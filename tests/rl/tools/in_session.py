from __future__ import annotations

import asyncio
from typing import Any

from model.rl.tools.sandbox import Sandbox


def cells(sandbox: Sandbox, *codes: str, array: Any = None) -> list[str]:
    """What each of these programs shows, one after the other in a session of their own."""

    async def run() -> list[str]:
        async with sandbox.session(array) as session:
            return [await session.run(code) for code in codes]

    return asyncio.run(run())
