"""The tools of the environment: what a policy's calls do (source: K2.5 paper App. D, pluggable Toolset)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import numpy as np

from model.chat import TOOLS, ToolCall
from model.data.sample import Sample
from model.errors import MoonflowError, Unavailable
from model.image import read_rgb
from model.rl.tools.sandbox import Limits, Sandbox, Session
from model.rl.tools.search import search


def environment_array(sample: Sample) -> np.ndarray | None:
    """``environment["array"]`` as uint8 [H, W]: nested lists, or the name of an image medium.

    The image is read as the model sees it (upright, on white, 8 bits) and made gray.

    Raises:
        MoonflowError: naming the sample, when the medium is missing or cannot be read, or the list is not a matrix of
            0-255.
    """
    array = sample.environment.get("array")
    if array is None:
        return None
    of = f"sample {sample.key} of {sample.family}: environment.array"
    if isinstance(array, str):
        if array not in sample.media:
            raise MoonflowError(f"{of} names no medium: {array!r}")
        try:
            return np.asarray(read_rgb(sample.media[array]).convert("L"))
        except MoonflowError as error:
            raise MoonflowError(f"{of}: {error}") from error
    try:
        matrix = np.asarray(array)
    except ValueError:  # rows of unequal length
        matrix = np.empty(0)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iu" or matrix.min() < 0 or matrix.max() > 255:
        raise MoonflowError(f"{of} is no matrix of integers 0-255")
    return matrix.astype(np.uint8)


def call_error(call: ToolCall, tools: Sequence[str]) -> str | None:
    """Why a call cannot run: a tool that was not declared, a missing or superfluous argument, or not a string."""
    if call.name not in tools or call.name not in TOOLS:
        return f"error: no tool {call.name}"
    wanted = TOOLS[call.name].parameters
    if set(call.arguments) != set(wanted) or not all(isinstance(value, str) for value in call.arguments.values()):
        return f"error: {call.name} takes {', '.join(wanted)}"
    return None


class EpisodeTools:
    """The tools of one episode, with their state. Use as an async context manager."""

    def __init__(self, sandbox: Sandbox, sample: Sample) -> None:
        self._sandbox, self._sample = sandbox, sample
        self._stack = AsyncExitStack()
        self._kernel: Session | None = None

    async def __aenter__(self) -> EpisodeTools:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def call(self, call: ToolCall) -> str:
        """The observation; a call that cannot run yields one that starts with ``error:``."""
        if error := call_error(call, self._sample.tools):
            return error
        if call.name == "search":
            return search(self._sample.environment.get("records", {}), call.arguments["query"])
        if call.name == "ipython":
            return await self._ipython(call.arguments["code"])
        return f"error: {call.name} is not available here"

    async def _ipython(self, code: str) -> str:
        if self._kernel is None:  # most episodes never ask for one
            array = environment_array(self._sample)
            try:
                session = self._sandbox.session(array)
            except (MoonflowError, OSError) as error:  # no server starts: no program of any episode can run
                raise Unavailable(str(error)) from error
            self._kernel = await self._stack.enter_async_context(session)
            if session.refusal:  # trouble of this machine, which a policy must not learn from
                raise MoonflowError(f"no program of sample {self._sample.key} can be run: {session.refusal}")
        return await self._kernel.run(code)


class Toolset:
    """Makes the tools of each episode; owns the sandbox server that its episodes share."""

    def __init__(self, limits: Limits | None = None, sandbox: str = "strict") -> None:
        self._sandbox = Sandbox(limits, sandbox)

    def episode(self, sample: Sample) -> EpisodeTools:
        return EpisodeTools(self._sandbox, sample)

    def close(self) -> None:
        self._sandbox.close()

    def __enter__(self) -> Toolset:
        return self

    def __exit__(self, kind: type[Any] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
