"""Coroutines that run at the same time and fail as one (source: ours)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

Result = TypeVar("Result")


async def all_of(work: Iterable[Coroutine[None, None, Result]]) -> list[Result]:
    """Run coroutines at the same time and return what they return, in their order.

    If one raises, the others are cancelled and have ended before its error is raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as raised:
        error = raised.exceptions[0]
        raise error from error.__cause__
    return [task.result() for task in tasks]
