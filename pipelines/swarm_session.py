"""What the commands that ask an endpoint for a swarm share: its key, its prices, signals, and files that are kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown
from model.boundary.whole_file import write_whole
from model.swarm.trace import Trace

FOLDER = Path("runs/swarm")
Result = TypeVar("Result")


def prices_of(price_in: float | None, price_out: float | None) -> tuple[float, float] | None:
    """US dollars per million tokens read and written; None if neither is given. Raises MoonflowError if one is."""
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise MoonflowError("give --price-in and --price-out together")
    return price_in, price_out


def key_of(api_key_env: str, endpoint: str) -> str:
    """The key that a variable holds; "" without a variable. Raises MoonflowError if it is not set."""
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    if api_key_env and not key:
        raise MoonflowError(f"{shown(api_key_env)} is not set: set it to the key of {shown(endpoint)}")
    return key


def kept_file(given: Path | None, ending: str, option: str) -> Path:
    """The path that an option gives, else a new one in FOLDER. Raises MoonflowError if it is a folder."""
    target = given or FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}{ending}"
    if target.is_dir():
        raise MoonflowError(f"{target} is a folder: give the path of a file as {option}")
    return target


async def until_signal(work: Coroutine[Any, Any, Result]) -> tuple[Result | None, int]:
    """What ``work`` returns and 0; or None and the number of the SIGINT or SIGTERM that ended it."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    stopped = 0

    def stop(number: int) -> None:
        nonlocal stopped
        stopped = number
        for each in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process as usual
            loop.remove_signal_handler(each)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task, 0
    except asyncio.CancelledError:
        if not stopped:
            raise
        return None, stopped


def save_trace(trace: Trace, target: Path, key: str) -> Path | None:
    """Write a trace, in which the key is nowhere; None, after a line on stderr, if that is impossible."""
    if key:
        trace = Trace.model_validate(_without(trace.model_dump(), key))
    return save(target, trace.to_json(), "the trace", "--trace")


def save(target: Path, text: str, what: str, option: str) -> Path | None:
    """Write a file whole; None, after a line on stderr, if that is impossible."""
    try:
        write_whole(target, text.encode())
    except OSError as error:
        print(f"moonflow: cannot write {what} {target}: {error.strerror}; give another {option}", file=sys.stderr)
        return None
    return target


def _without(value: Any, key: str, name: str = "") -> Any:
    """A trace's fields with every text in which the key stands changed; what a field is called, and kinds, stay."""
    if isinstance(value, str):
        return value if name in ("format", "kind") else value.replace(key, "<key>")
    if isinstance(value, dict):
        return {each: _without(item, key, each) for each, item in value.items()}
    return [_without(item, key, name) for item in value] if isinstance(value, list) else value
