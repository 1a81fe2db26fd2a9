"""What a URL leads to is found by asking: SGLang's API, OpenAI's, another one or none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from model.boundary.errors import MoonflowError, Unavailable
from model.codec.image import ImageConfig
from model.data.samples.tokenize import tokenize_prompt
from model.evals.drawn import drawn
from model.evals.suites import SUITES
from model.rollout.endpoint import AtMost, Endpoint, find_endpoint
from model.rollout.keys import ENGINE_KEY, JUDGE_KEY
from model.rollout.protocol import Completion, Request
from tests.engine_hosts import ChatHost, Host, SGLangHost
from tests.tiny_folders import tiny_tokenizer


def find(url: str, key: str = ENGINE_KEY) -> Endpoint:
    return asyncio.run(find_endpoint(url, attempts=3, backoff_s=0.01, key=key))


def test_sglang_is_told_by_its_own_page_and_asked_by_token_ids() -> None:
    with SGLangHost() as host:
        host.pages["/v1/models"] = (200, {"data": [{"id": "k25", "max_model_len": 512}]})
        found = find(f"{host.url}/v1/")
        assert found == Endpoint(host.url, "sglang", "/models/k25", 512)
        assert "SGLang" in str(found) and host.url in str(found)
        host.pages["/model_info"] = host.pages.pop("/get_model_info")  # its newer name
        assert find(host.url).api == "sglang"
        request = Request([1, 2], max_new_tokens=1)
        (completion,) = asyncio.run(found.engine(tiny_tokenizer(), ImageConfig()).generate([request]))
        assert completion.token_ids == [2] and host.seen[0][0] == "/generate"


def test_any_other_server_is_asked_by_messages() -> None:
    with ChatHost() as host:
        found = find(f" {host.url}/v1")
        assert found == Endpoint(host.url, "chat", "k25", None)
        assert "OpenAI-compatible" in str(found) and "model k25" in str(found)


def test_a_server_that_still_loads_is_asked_again() -> None:
    class Loading(ChatHost):
        loading = 2

        @property
        def pages(self) -> dict[str, Any]:
            self.loading -= 1
            return {"/v1/models": (503, {})} if self.loading > -2 else {"/v1/models": (200, {"data": [{"id": "k25"}]})}

        @pages.setter
        def pages(self, pages: dict[str, Any]) -> None: ...

    with Loading() as host:
        assert find(host.url).model == "k25"


@pytest.mark.parametrize("models", [None, {"data": []}, {"data": "k25"}, {"data": [{}]}, {"data": ["k25"]}, ["k25"]])
def test_what_is_no_engine_is_told(models: Any) -> None:
    with Host() as host:
        host.pages = {} if models is None else {"/v1/models": (200, models)}
        with pytest.raises(MoonflowError, match=f"{host.url} answers neither .* give the base URL"):
            find(host.url)


@pytest.mark.parametrize("kind", [ChatHost, SGLangHost])
@pytest.mark.parametrize(("key", "other"), [(ENGINE_KEY, JUDGE_KEY), (JUDGE_KEY, ENGINE_KEY)])
def test_a_server_that_wants_a_key_gets_the_one_of_its_variable(
    kind: type[Host], key: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind() as host:
        host.key = "right-key"
        monkeypatch.setenv(other, "right-key")
        with pytest.raises(MoonflowError, match=rf"HTTP 401: .*Unauthorized.*; {key} is not set: set it"):
            find(host.url, key)
        monkeypatch.setenv(key, "other-key")
        with pytest.raises(MoonflowError, match=f"Unauthorized Bearer <{key}>.*; {key} has another key") as caught:
            find(host.url, key)
        assert "other-key" not in str(caught.value)
        monkeypatch.setenv(key, "right-key\n")
        monkeypatch.setenv(other, "other-key")
        engine = find(host.url, key).engine(tiny_tokenizer(), ImageConfig())
        prompt = tokenize_prompt(drawn(SUITES["fact_qa"], 2, 0)[0], tiny_tokenizer(), ImageConfig())
        asyncio.run(engine.generate([Request(prompt.input_ids.tolist(), max_new_tokens=1)]))
        assert len(host.seen) == 1


def test_a_key_that_no_header_can_hold_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("my\nkey", "my key", "m\u00fc-key"):
        monkeypatch.setenv("MOONFLOW_ENGINE_KEY", key)
        with pytest.raises(MoonflowError, match="MOONFLOW_ENGINE_KEY has characters") as caught:
            find("http://127.0.0.1:9")
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://me:secret@127.0.0.1:9", "http://me:se/cret@a", "me:secret@a"],  # pragma: allowlist secret
)
def test_a_password_in_a_url_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(MoonflowError, match="leave user and password out, and set MOONFLOW_ENGINE_KEY") as caught:
        find(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "k25", "127.0.0.1:30000", "ftp://a", "http://", "http://a?b=c", "s3://a"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(MoonflowError, match="is not the URL of a server"):
        find(url)


def test_an_absent_server_is_told_after_a_few_attempts() -> None:
    with pytest.raises(Unavailable, match="http://127.0.0.1:9/get_model_info failed 3 times.*is it running"):
        find("http://127.0.0.1:9")


class Counting:
    """Counts the calls under way."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return [Completion([request.seed], [0.0], "stop") for request in requests]

    async def update_weights(self, checkpoint: object) -> None:
        raise NotImplementedError


def test_no_more_calls_are_under_way_than_allowed() -> None:
    async def many() -> list[int]:
        engine = AtMost(counting, 3)
        found = await asyncio.gather(*(engine.generate([Request([1], seed=n)]) for n in range(20)))
        return [completion.token_ids[0] for (completion,) in found]

    counting = Counting()
    assert asyncio.run(many()) == list(range(20)) and counting.most == 3
