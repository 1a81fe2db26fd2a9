"""The engine in its own process gives what the engine in this one gives, and ends with whoever started it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from components.serve.engine_messages import Begin, Cancel, MessageReader, encode
from components.serve.engine_process import EngineError, EngineProcess, Generation
from model.boundary.errors import MoonflowError
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.drawn import PAD, pixels
from tests.tiny_folders import write_checkpoint

PROMPT = list(range(300, 340))
LONG = Request(PROMPT, max_new_tokens=200, seed=5)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def prefills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in which the engine's process writes how many rows get more than one token, whenever it reads some."""
    return tmp_path_factory.mktemp("patched") / "prefills"


@pytest.fixture(scope="module")
def engine(checkpoint: Path, runner: asyncio.Runner, prefills: Path) -> Iterator[EngineProcess]:
    (prefills.parent / "sitecustomize.py").write_text(  # run in the engine's process as it starts
        "from model.network.kernel_cached import CachedForward\n"
        "read = CachedForward.read\n"
        "def counted(kernels, x, latents, rows, starts, counts):\n"
        f"    print(sum(count > 1 for count in counts), file=open({str(prefills)!r}, 'a'))\n"
        "    return read(kernels, x, latents, rows, starts, counts)\n"
        "CachedForward.read = counted\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(prefills.parent))
        engine = runner.run(EngineProcess.start(checkpoint, lambda count: None))
    yield engine
    runner.run(engine.close())


async def whole(generation: Generation) -> Completion:
    reason = await generation.wait()
    return Completion([token.id for token in generation.tokens], [t.logprob for t in generation.tokens], reason)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def with_picture() -> Request:
    """512 patches, 1.2 MB: more than goes through the socket at once."""
    grids = [(1, 16, 32)]
    return Request([5, *[PAD] * 128, 6], pixels(grids), grids, max_new_tokens=20, temperature=0.0)


def test_completions_are_those_of_the_engine_in_this_process(
    engine: EngineProcess, runner: asyncio.Runner, checkpoint: Path
):
    requests = [replace(LONG, seed=seed, max_new_tokens=10 + seed) for seed in range(12)] + [with_picture()]

    async def body() -> list[Completion]:
        return await asyncio.gather(*(whole(generation) for generation in engine.begin(requests)))

    assert runner.run(body()) == asyncio.run(EmbeddedEngine.load(checkpoint).generate(requests))


def test_an_impossible_request_fails_alone_and_a_cancelled_one_leaves_its_row(
    engine: EngineProcess, runner: asyncio.Runner
):
    async def body() -> None:
        impossible, cancelled, kept = engine.begin([replace(LONG, input_ids=[]), LONG, replace(LONG, seed=6)])
        assert (engine.waiting, engine.running) == (3, 0)
        with pytest.raises(EngineError, match="MoonflowError: a prompt of 0 tokens"):
            await impossible.wait()
        await until(lambda: engine.running == 2)
        assert engine.waiting == 0
        cancelled.cancel()
        with pytest.raises(EngineError, match="cancelled"):
            await cancelled.wait()
        assert engine.running == 1 and len(cancelled.tokens) < len((await whole(kept)).token_ids)
        cancelled.cancel()  # once more, late
        assert (engine.waiting, engine.running) == (0, 0)

    runner.run(asyncio.wait_for(body(), 60))


def test_equal_prompts_that_begin_together_are_read_once(engine: EngineProcess, runner: asyncio.Runner, prefills: Path):
    async def body() -> None:
        same = [replace(LONG, input_ids=PROMPT[1:], seed=seed, max_new_tokens=4) for seed in range(6)]
        for generation in engine.begin([*same, replace(same[0], input_ids=PROMPT[::-1])]):
            await generation.wait()

    prefills.write_text("")
    runner.run(body())
    assert sum(map(int, prefills.read_text().split())) == 2


def test_what_cannot_be_loaded_is_told_and_leaves_no_process(tmp_path: Path):
    before = psutil.Process().children()
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    os.truncate(checkpoint / "model.safetensors", 1000)
    with pytest.raises(MoonflowError, match="model.safetensors"):
        asyncio.run(EngineProcess.start(checkpoint, lambda count: None))
    assert psutil.Process().children() == before


def test_who_stops_waiting_for_the_load_leaves_no_process(checkpoint: Path):
    before = psutil.Process().children()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(EngineProcess.start(checkpoint, lambda count: None), 0.3))
    assert psutil.Process().children() == before


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_messages_arrive_whole_in_whatever_pieces(size: int):
    sent = [Cancel(3), Begin([(7, replace(LONG, max_new_tokens=9)), (8, LONG)]), Cancel(2**40)]
    stream = b"".join(map(encode, sent))
    decoder = MessageReader()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == sent
