"""A user's Python function as a tool: its JSON Schema is made from its signature (source: ours).

Functions run in threads, and async ones in a loop of their own, so that one that blocks holds up nobody else. A thread
cannot be ended: a call that takes too long is left behind, and ends with the process.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, to_json

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import shown
from model.rl.tasks.loading import find, told
from model.swarm.chat.tools import Tool, ToolError


def function_tool(spec: str) -> Tool:
    """The tool of a function that ``module:function`` names.

    Raises:
        MoonflowError: there is no such function, a parameter has no type or one without a JSON Schema, or the function
            has no docstring.
    """
    if ":" not in spec:
        raise MoonflowError(f"--tool {shown(spec)}: give module:function, for example mytools:search")
    function = find(spec)
    if not callable(function) or isinstance(function, type):
        raise MoonflowError(f"--tool {spec} is no function")
    description = inspect.getdoc(function)
    if not description:
        raise MoonflowError(f"--tool {spec} has no docstring: say in one what the function does, for the model")
    untyped = [p.name for p in inspect.signature(function).parameters.values() if p.annotation is p.empty]
    if untyped:
        raise MoonflowError(f"--tool {spec}: parameter {untyped[0]} has no type: annotate it")
    try:
        arguments = _arguments_of(function)
        schema = arguments.json_schema()
        if schema.get("type") != "object":
            raise ValueError("its parameters cannot all be given by name")
    except Exception as error:
        raise MoonflowError(f"--tool {spec}: its parameters have no JSON Schema: {told(error)}") from error
    name = spec.rpartition(":")[2].rpartition(".")[2]
    return Tool(name, description, schema, functools.partial(_run, function, arguments))


def _arguments_of(function: Callable[..., Any]) -> TypeAdapter[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Checks and converts the arguments of a function by its signature."""

    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    return TypeAdapter(bound)  # type: ignore[arg-type]


async def _run(function: Callable[..., Any], adapter: TypeAdapter[Any], arguments: dict[str, Any]) -> str:
    try:
        positional, named = adapter.validate_python(ArgsKwargs((), arguments))
    except ValidationError as error:
        wrong = (
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors(include_url=False)
        )
        raise ToolError("; ".join(wrong)) from None
    if inspect.iscoroutinefunction(function):
        future: Future[Any] = asyncio.run_coroutine_threadsafe(_awaited(function, positional, named), _loop())
    else:
        future = Future()
        threading.Thread(target=_fulfil, args=(future, function, positional, named), daemon=True).start()
    try:
        return await asyncio.wrap_future(future)  # type: ignore[no-any-return]
    finally:
        future.cancel()


def _fulfil(future: Future[Any], function: Callable[..., Any], positional: Any, named: Any) -> None:
    try:
        result = _as_text(function(*positional, **named))
    except BaseException as error:  # of the user's code; it may even exit
        outcome: Any = _reported(error)
        if future.set_running_or_notify_cancel():
            future.set_exception(outcome)
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(result)


async def _awaited(function: Callable[..., Coroutine[Any, Any, Any]], positional: Any, named: Any) -> str:
    try:
        return _as_text(await function(*positional, **named))
    except Exception as error:
        raise _reported(error) from error
    except (KeyboardInterrupt, SystemExit) as error:  # would end the loop of all tools
        raise _reported(error) from error


def _reported(error: BaseException) -> ToolError:
    return ToolError(f"it raised {told(error)}")


def _as_text(result: Any) -> str:
    """Text as it is, anything else as JSON."""
    return result if isinstance(result, str) else to_json(result, fallback=str).decode()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop of all async functions, in a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
