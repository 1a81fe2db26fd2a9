"""An engine whose completions are written in advance."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.chat import encode_chat
from model.config import preset
from model.data.families import FAMILIES
from model.data.folder import DataFolder
from model.data.shards import write_shard
from model.multimodal import KimiK25
from model.rollout.protocol import Completion, Request
from model.tokenizer import Tokenizer
from model.train.checkpoint import save_checkpoint
from tests.corpus import small_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


class ScriptedEngine:
    """A remote party: ``script(request)`` gives the token ids of each completion; token n has log-prob -n / 100."""

    def __init__(self, script: Callable[[Request], list[int]], seconds: float = 0.0) -> None:
        self.script, self.seconds = script, seconds
        self.requests: list[Request] = []
        self.running = self.most_running = 0

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


class Around:
    """What surrounds a step, without services: checkpoints in a folder, metrics in a list; uris are local paths."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        self.saved: list[tuple[int, bool]] = []
        self.logged: list[dict[str, float]] = []
        self.reports: list[tuple[int, int]] = []
        self.newest: Path | None = None
        self.checkpoints = self.metrics = self.progress = self

    def fetch(self, uri: str) -> Path:
        return Path(uri)

    def data(self, uri: str) -> DataFolder:
        return DataFolder(Path(uri))

    def latest(self) -> Path | None:
        found = sorted(self.folder.glob("saved-*"))
        return found[-1] if found else None

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Around:
        self.preparing = (index, tokens_seen, complete)
        return self

    def publish(self, folder: Path, added: Sequence[object] = ()) -> None:
        index, tokens_seen, complete = self.preparing
        shutil.copytree(folder, self.folder / f"saved-{index}")
        self.saved.append((index, complete))
        self.newest = self.folder / f"saved-{index}"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged.append({**metrics, "step": step})

    def update(self, done: int, total: int, **figures: float) -> None:
        self.reports.append((done, total))


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


@pytest.fixture(scope="session")
def data_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prepare_data writes, with a few train samples of some families; no eval shard exists."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer.save(folder)
    index: dict[str, Any] = {"families": {}, "image": {}}
    for name in ("fact_qa", "array_tool", "digit_string", "sub_search", "wide_search", "recall"):
        (folder / f"{name}.tar").write_bytes(write_shard(FAMILIES[name].sample(0, "train", n) for n in range(12)))
        entry = {"shard": f"{name}.tar", "samples": 12}
        index["families"][name] = {"train": [entry], "eval": [{"shard": f"eval/{name}.tar", "samples": 12}]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def checkpoint(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh tiny model as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("parent")
    save_checkpoint(folder, KimiK25(preset("tiny"), seed=5), data_folder, None, {})
    return folder
