from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from components.serve.stage import serving
from tests.scripted import write_scripted


@pytest.fixture(scope="session")
def address(checkpoint: Path) -> Iterator[str]:
    with serving(checkpoint, "moonflow", 60) as address:
        yield address


@pytest.fixture(scope="session")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def scripted_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a model that thinks "hm", says "Let me look" and searches for Lima, whatever it is asked."""
    script = (
        "<think>", "hm", "</think>", "Let me look", "<|tool_calls_section_begin|>", "<|tool_call_begin|>",
        "functions.search:0", "<|tool_call_argument_begin|>", '{"query": "lima"}', "<|tool_call_end|>",
        "<|tool_calls_section_end|>", "<|im_end|>",
    )  # fmt: skip
    checkpoint = write_scripted(tmp_path_factory.mktemp("scripted") / "checkpoint", script)
    with serving(checkpoint, "moonflow", 60) as address:
        yield address


@pytest.fixture
def read_metrics(address: str) -> Callable[[], dict[str, float]]:
    def read() -> dict[str, float]:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    return read
