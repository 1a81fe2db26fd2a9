"""The tools of an episode: what a policy's calls do (source: K2.5 paper App. D, pluggable Toolset)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any

import numpy as np

from model.boundary.errors import MoonflowError, Unavailable
from model.codec.chat import ToolCall
from model.codec.image import ImageConfig, read_pixels
from model.codec.tools import TOOLS, no_tool
from model.codec.video import decode_video
from model.data.families.world.index import View, downloaded, files_cell, world
from model.data.samples.sample import Sample
from model.rl.tools.sandbox import Limits, Sandbox, Session
from model.rl.tools.sandbox_server import PIXEL_BYTES
from model.rl.tools.search import search

RELEASED = ImageConfig()
VIDEO_EXTENSIONS = ("avi", "m4v", "mkv", "mov", "mp4", "webm")


def environment_array(sample: Sample, config: ImageConfig = RELEASED) -> np.ndarray | None:
    """The pixels of a task: uint8 [H, W] of a grey picture, [H, W, 3] of a colour one, [N, H, W, 3] of a video or of
    several colour pictures, [N, H, W, 1] of several grey ones; None if it has none.

    ``environment["array"]`` holds nested lists, or the name of an image or video medium, whose extension tells which;
    ``environment["images"]`` holds a list of pictures of one size, each as nested lists or the name of an image. Media
    are read as the model sees them: an image upright, on white, with 8 bits; a video's frames as they are sampled. A
    file whose format stores grey gives [H, W], any other [H, W, 3], also if all its colours are grey.

    Args:
        config: says which frames are sampled from a video.

    Raises:
        MoonflowError: the task has both fields, a medium is missing or cannot be read, there are more pixels than a
            session takes, the lists are not such an array of 0-255, or the pictures are not alike; names the sample.
    """
    array, images = sample.environment.get("array"), sample.environment.get("images")
    of = f"sample {sample.key} of {sample.family}: environment"
    if array is not None and images is not None:
        raise MoonflowError(f"{of} has array and images: give one of them")
    if images is None:
        return None if array is None else _pixels(array, sample, config, f"{of}.array")
    if not isinstance(images, list) or not images:
        raise MoonflowError(f"{of}.images is no list of pictures")
    pictures: list[np.ndarray] = []
    for n, picture in enumerate(images):
        pictures.append(_pixels(picture, sample, config, f"{of}.images.{n}"))
        if pictures[n].shape != pictures[0].shape or pictures[0].ndim > 3:
            raise MoonflowError(f"{of}.images: its pictures must have one size, and all be grey or all be in colour")
        _require_room(pictures, f"{of}.images")
    frames = np.stack(pictures)
    return frames if frames.ndim == 4 else frames[..., None]


def _require_room(pictures: Sequence[np.ndarray], of: str) -> None:
    if sum(picture.nbytes for picture in pictures) > PIXEL_BYTES:
        shape = f"{len(pictures)} x " * (len(pictures) > 1) + str(list(pictures[0].shape))
        raise MoonflowError(
            f"{of}: its pixels {shape} are more than the {PIXEL_BYTES:,} bytes that a program can be "
            "given (PIXEL_BYTES): give a smaller or shorter one"
        )


def _pixels(array: Any, sample: Sample, config: ImageConfig, of: str) -> np.ndarray:
    """uint8 pixels of one picture or video, which ``of`` names."""
    pixels: np.ndarray
    if isinstance(array, str):
        if array not in sample.media:
            raise MoonflowError(f"{of} names no medium: {array!r}")
        video = array.rpartition(".")[2].lower() in VIDEO_EXTENSIONS
        try:
            pixels = decode_video(sample.media[array], config)[0] if video else read_pixels(sample.media[array])
        except MoonflowError as error:
            raise MoonflowError(f"{of}: {error}") from error
        _require_room([pixels], of)
        return pixels
    try:
        pixels = np.asarray(array)
    except ValueError:  # rows of unequal length
        pixels = np.empty(0)
    picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not picture or not pixels.size or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise MoonflowError(f"{of} is no matrix of integers 0-255, or of [red, green, blue] of such integers")
    return pixels.astype(np.uint8)


def call_error(call: ToolCall, tools: Sequence[str]) -> str | None:
    """Why a call cannot run: its tool was not declared, or an argument is missing, unknown or not a string."""
    if call.name not in tools or call.name not in TOOLS:
        return no_tool(call.name)
    return TOOLS[call.name].refusal(call.arguments)


class Examiner(Sandbox):
    """The sandbox in which libraries judge what a policy wrote: `model.rl.rewards.examiner`."""

    module = "model.rl.rewards.examiner"
    bounds = Limits(session_cpu_s=2.0, memory_mb=512)  # of one answer, which takes milliseconds (ours)


class EpisodeTools:
    """The tools of one episode, whose programs share one session. Use it as an async context manager."""

    def __init__(
        self,
        sandbox: Sandbox,
        sample: Sample,
        config: ImageConfig = RELEASED,
        latency: Mapping[str, float] | None = None,
    ) -> None:
        self._sandbox, self._sample, self._config, self._latency = sandbox, sample, config, latency or {}
        self._stack = AsyncExitStack()
        self._kernel: Session | None = None
        self._files: dict[str, str] = {}

    async def __aenter__(self) -> EpisodeTools:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def call(self, call: ToolCall) -> str:
        """Run a call and return the observation, which starts with ``error:`` if the call cannot run.

        Raises:
            Unavailable: no sandbox server starts, so that no program of any episode can run.
            MoonflowError: this machine cannot start a session, the task's pixels cannot be read, or its environment is
                wrong.
        """
        if error := call_error(call, self._sample.tools):
            return error
        if delay := self._latency.get(call.name):
            await asyncio.sleep(delay)
        if call.name == "ipython":
            return await self._ipython(call.arguments["code"])
        if "world" in self._sample.environment and call.name in ("search", "open_page", "download"):
            return await self._in_world(call)
        if call.name == "search":
            return search(self._sample.environment.get("records", {}), call.arguments["query"])
        return f"error: {call.name} is not available here"

    async def _in_world(self, call: ToolCall) -> str:
        view = View.of(self._sample.environment, f"sample {self._sample.key} of {self._sample.family}")
        if call.name == "search":
            return world().search(call.arguments["query"], view)
        if call.name == "open_page":
            return world().open_page(call.arguments["page"], call.arguments["window"], view)
        name = call.arguments["file"].strip()
        if (content := world().file(name)) is None:
            return f"error: there is no file {name[:40]}; pages tell the names of files"
        self._files[name] = content
        failed = await self._ipython(files_cell(self._files))  # all of them: a program may have replaced the name
        return failed or downloaded(name, content)

    async def _ipython(self, code: str) -> str:
        if self._kernel is None:  # most episodes never ask for one
            pixels = environment_array(self._sample, self._config)
            notebook = _notebook(self._sandbox, self._sample, pixels)
            self._kernel = await self._stack.enter_async_context(notebook)
        return await self._kernel.run(code)


@asynccontextmanager
async def _notebook(sandbox: Sandbox, sample: Sample, pixels: np.ndarray | None) -> AsyncIterator[Session]:
    """A session for programs of a task. Raises as `EpisodeTools.call`."""
    try:
        session = sandbox.session(pixels)
    except (MoonflowError, OSError) as error:  # concerns every episode
        raise Unavailable(str(error)) from error
    async with session:
        if session.refusal:  # a fault of this machine, which the policy must not learn from
            raise MoonflowError(f"no program of sample {sample.key} can be run: {session.refusal}")
        yield session


class Toolset:
    """Makes the tools of each episode; owns the sandbox servers that its episodes share.

    Args:
        limits, sandbox: as for `Sandbox`.
        latency: tool -> seconds that each of its calls takes in addition, really awaited, so that the wall-clock of
            agents that work one after the other and at the same time can be compared; {} for none.

    Raises:
        MoonflowError: the latency names no tool, or is no number of seconds.
    """

    def __init__(
        self, limits: Limits | None = None, sandbox: str = "strict", latency: Mapping[str, float] | None = None
    ) -> None:
        for name, seconds in (latency or {}).items():
            if name not in TOOLS:
                raise MoonflowError(f"latency names no tool: {name!r}; choose from {', '.join(TOOLS)}")
            if not math.isfinite(seconds) or seconds < 0:
                raise MoonflowError(f"latency of {name} is {seconds}: give seconds, 0 or more")
        self._sandbox, self._latency = Sandbox(limits, sandbox), dict(latency or {})
        self._examiner = Examiner(Examiner.bounds, sandbox)

    def episode(self, sample: Sample, config: ImageConfig = RELEASED) -> EpisodeTools:
        """The tools of one episode of a task; ``config`` says which frames of a video its programs find."""
        return EpisodeTools(self._sandbox, sample, config, self._latency)

    def judging(self, sample: Sample) -> AbstractAsyncContextManager[Session]:
        """A session of its own in which a verifier runs the answer to a task; nothing of the episode is in it.

        Entering it raises as `EpisodeTools.call`.
        """
        return _notebook(self._sandbox, sample, None)

    def examining(self, sample: Sample) -> AbstractAsyncContextManager[Session]:
        """A session in which the library of the task's reward judges one answer (`model.rl.rewards.examined`).

        Entering it raises as `EpisodeTools.call`.
        """
        return _notebook(self._examiner, sample, None)

    def close(self) -> None:
        self._sandbox.close()
        self._examiner.close()

    def __enter__(self) -> Toolset:
        return self

    def __exit__(self, kind: type[Any] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
