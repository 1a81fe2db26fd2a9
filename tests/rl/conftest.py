"""An engine whose completions are written in advance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.codec.chat import encode_chat
from model.codec.tokenizer import Tokenizer
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Completion, Request
from tests.corpus import small_tokenizer
from tests.tiny_folders import write_training_folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


class ScriptedEngine:
    """A remote party: ``script(request)`` gives the token ids of each completion; token n has log-prob -n / 100."""

    def __init__(self, script: Callable[[Request], list[int]], seconds: float = 0.0) -> None:
        self.script, self.seconds = script, seconds
        self.requests: list[Request] = []
        self.running = self.most_running = 0

    @classmethod
    def saying(cls, *turns: list[int]) -> ScriptedEngine:
        """Its completions are these, in their order, whatever the requests."""
        left = list(turns)
        return cls(lambda request: left.pop(0))

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.running += len(requests)
        self.most_running = max(self.running, self.most_running)
        await asyncio.sleep(self.seconds)
        self.running -= len(requests)
        completions = []
        for request in requests:
            self.requests.append(request)
            ids = self.script(request)
            kept = ids[: request.max_new_tokens]
            stopped = kept[-1] in request.stop_token_ids
            completions.append(Completion(kept, [-n / 100 for n in range(len(kept))], "stop" if stopped else "length"))
        return completions

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError("a script has no weights")


Calls = Sequence[tuple[str, dict[str, Any]]]


def said(tokenizer: Tokenizer, content: str = "", calls: Calls = (), first: int = 0) -> list[int]:
    """The tokens a policy would sample for an assistant turn; ``first``: calls already made in the conversation."""
    asked = [{"role": "assistant", "content": "", "tool_calls": [{"name": "search", "arguments": {}}] * first}]
    earlier = asked if first else []
    results = [{"role": "tool", "tool_call_id": f"functions.search:{n}", "content": "x"} for n in range(first)]
    turn = {"role": "assistant", "content": content, "tool_calls": [{"name": n, "arguments": a} for n, a in calls]}
    before = [{"role": "user", "content": "q"}, *earlier, *results]
    prompt = encode_chat(before, [], tokenizer, add_generation_prompt=True)
    whole = encode_chat([*before, turn], [], tokenizer)
    return whole.ids[len(prompt.ids) :]


@pytest.fixture(scope="session")
def speak(tokenizer: Tokenizer) -> Callable[..., list[int]]:
    return lambda *args, **kwargs: said(tokenizer, *args, **kwargs)


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture(scope="module")
def toolset() -> Iterator[Toolset]:
    with Toolset() as tools:
        yield tools


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prepare_data writes, with a few train samples of some families; no eval shard exists."""
    families = ("fact_qa", "array_tool", "digit_string", "sub_search", "wide_search", "recall")
    folder = write_training_folder(tmp_path_factory.mktemp("data"), families, count=12)
    index = json.loads((folder / "index.json").read_text())
    for name, shards in index["families"].items():
        shards["eval"] = [{"shard": f"eval/{name}-00000.tar", "samples": 12}]
    (folder / "index.json").write_text(json.dumps(index))
    return folder
