"""Tokens per second over HTTP, compared with the bare embedded engine on the same requests at the same concurrency.

    python tests/benchmarks/serving_speed.py [--clients 64] [--each 3] [--new 64] [--repeats 5] [--json]

``python -m components.serve.server`` serves a checkpoint of the tiny preset's shape with random weights in another
process. This process is the client: it keeps one connection per client, and does as little as possible because it
shares the machine. The bare engine answers the same token ids in this process, to as many asyncio callers, and must
generate as many tokens. Whole answers and streams are timed, and the bare engine right before and after each, because
the speed of a machine drifts by more than the difference. The median of the repeats counts; the range shows how certain
it is. ``cpu_s`` is the CPU time of each process: with two cores the engine has one to itself, and the server's HTTP
side shares the other with the client. Expect about two minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from components.serve.openai_api import parse, to_engine
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Request
from tests.http_server import free_port  # noqa: E402
from tests.tiny_folders import write_checkpoint

WORDS = ["lima", "peru", "rome", "oslo", "cairo", "delhi", "12", "7", "305", "which", "capital", "has", "more", "than"]


def body(seed: int, new: int, stream: bool) -> bytes:
    draw = random.Random(seed)
    text = " ".join(draw.choices(WORDS, k=draw.randint(8, 30)))
    length = draw.randint(new // 2, new)
    chat: dict[str, Any] = {"model": "moonflow", "messages": [{"role": "user", "content": text}], "seed": seed,
                            "temperature": 1.0, "max_tokens": length, "stream": stream}  # fmt: skip
    if stream:
        chat["stream_options"] = {"include_usage": True}
    return json.dumps(chat).encode()


@contextmanager
def server(checkpoint: Path) -> Iterator[tuple[int, list[psutil.Process]]]:
    """Start a server; gives its port and its processes, first HTTP, then the engine."""
    port = free_port()
    command = [sys.executable, "-m", "components.serve.server", "--checkpoint", str(checkpoint), "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment)
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        http = psutil.Process(process.pid)
        yield port, [http, *http.children()]
    finally:
        process.terminate()
        process.wait(60)


class Connection:
    """A minimal HTTP/1.1 client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def post(self, content: bytes) -> bytes:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + content)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise SystemExit(f"the server answered {answer[:200]!r}: the measurement is void")
        if b"content-length:" in answer:
            return await self._reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
        whole = b""
        while size := int((await self._reader.readuntil(b"\r\n"))[:-2], 16):
            whole += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return whole


async def over_http(port: int, shares: list[list[bytes]], stream: bool) -> int:
    async def client(bodies: list[bytes]) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        connection, tokens = Connection(reader, writer), 0
        for content in bodies:
            answer = await connection.post(content)
            last = answer.split(b"data: ")[-2] if stream else answer
            tokens += json.loads(last)["usage"]["completion_tokens"]
        writer.close()
        return tokens

    return sum(await asyncio.gather(*(client(share) for share in shares)))


async def bare(engine: EmbeddedEngine, shares: list[list[Request]]) -> int:
    async def caller(requests: list[Request]) -> int:
        return sum([len((await engine.generate([request]))[0].token_ids) for request in requests])

    return sum(await asyncio.gather(*(caller(share) for share in shares)))


def timed(run: Callable[[], Awaitable[int]], workers: list[psutil.Process]) -> tuple[float, list[float], int]:
    """Run something; returns seconds, CPU seconds of each worker, and tokens."""

    async def whole() -> int:
        return await run()

    def worked() -> list[float]:
        return [sum(worker.cpu_times()[:2]) for worker in workers]

    before, start = worked(), time.perf_counter()
    tokens = asyncio.run(whole())
    elapsed = time.perf_counter() - start
    return elapsed, [now - then for now, then in zip(worked(), before, strict=True)], tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="requests at once")
    parser.add_argument("--each", type=int, default=3, help="requests of each client, one after the other")
    parser.add_argument("--new", type=int, default=64, help="most tokens of an answer; the least is half of it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"bare": [], "served": [], "streamed": []}
    ratios: dict[str, list[float]] = {"served": [], "streamed": []}
    cpu_seconds: dict[str, list[list[float]]] = {"bare": [], "served": [], "streamed": []}
    counts: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint")
        tokenizer, engine = Tokenizer.load(checkpoint), EmbeddedEngine.load(checkpoint)
        context = 256

        def bodies(stream: bool) -> list[list[bytes]]:
            return [[body(client * options.each + turn, options.new, stream) for turn in range(options.each)]
                    for client in range(options.clients)]  # fmt: skip

        whole, streams = bodies(False), bodies(True)
        requests = [[to_engine(parse(content), tokenizer, ImageConfig(), context).requests[0] for content in share]
                    for share in whole]  # fmt: skip
        with server(checkpoint) as (port, processes):
            runs = {
                "bare": lambda: bare(engine, requests),
                "served": lambda: over_http(port, whole, False),
                "streamed": lambda: over_http(port, streams, True),
            }
            here = psutil.Process()

            def measure(name: str) -> float:
                elapsed, worked, tokens = timed(runs[name], [here] if name == "bare" else [*processes, here])
                counts.add(tokens)
                seconds[name].append(elapsed)
                cpu_seconds[name].append(worked)
                return elapsed

            for name in runs:  # allocates
                measure(name)
                seconds[name].clear()
                cpu_seconds[name].clear()
            before = measure("bare")
            for _ in range(options.repeats):
                for name, found in ratios.items():
                    elapsed, after = measure(name), measure("bare")
                    found.append((before + after) / 2 / elapsed)
                    before = after
    if len(counts) != 1:
        raise SystemExit(f"the ways generated different numbers of tokens, {counts}: the measurement is void")
    tokens = counts.pop()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    worked_for = {
        name: [round(statistics.median(process), 2) for process in zip(*values, strict=True)]
        for name, values in cpu_seconds.items()
    }
    result = {
        "benchmark": "serving_speed",
        "clients": options.clients,
        "requests": options.clients * options.each,
        "tokens": tokens,
        "cores": len(os.sched_getaffinity(0)),
        "engine_tokens_per_s": round(tokens / median["bare"], 1),
        "served_tokens_per_s": round(tokens / median["served"], 1),
        "streamed_tokens_per_s": round(tokens / median["streamed"], 1),
        "served_over_engine": round(statistics.median(ratios["served"]), 3),
        "served_range": [round(min(ratios["served"]), 3), round(max(ratios["served"]), 3)],
        "streamed_over_engine": round(statistics.median(ratios["streamed"]), 3),
        "streamed_range": [round(min(ratios["streamed"]), 3), round(max(ratios["streamed"]), 3)],
        "cpu_s": {
            "bare": worked_for["bare"][0],
            "served": dict(zip(("http", "engine", "client"), worked_for["served"], strict=True)),
            "streamed": dict(zip(("http", "engine", "client"), worked_for["streamed"], strict=True)),
        },
    }
    if not options.json:
        print(f"embedded engine   {result['engine_tokens_per_s']:>9,} tokens/s   {options.clients} callers")
        print(f"over HTTP         {result['served_tokens_per_s']:>9,} tokens/s   x {result['served_over_engine']}")
        print(f"over HTTP, stream {result['streamed_tokens_per_s']:>9,} tokens/s   x {result['streamed_over_engine']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
