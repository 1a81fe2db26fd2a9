"""The SGLang client against a small host that speaks SGLang's /generate, /update_weights_from_disk and /health."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch

from model.boundary.errors import MoonflowError, Unavailable
from model.codec.image import ImageConfig, encode_image
from model.rollout.protocol import Completion, Request
from model.rollout.sglang import SGLangEngine
from tests.engine_hosts import SGLangHost

PAD = 789


@pytest.fixture
def host() -> Iterator[SGLangHost]:
    with SGLangHost() as host:
        yield host


def engine(host: SGLangHost) -> SGLangEngine:
    return SGLangEngine(host.url, PAD, backoff_s=0.01)


def test_ids_go_in_and_ids_with_logprobs_come_out_in_order(host):
    requests = [
        Request([1, 2, seed], max_new_tokens=2, temperature=0.5, top_p=0.9, stop_token_ids=(770,), seed=seed)
        for seed in (7, 8, 9)
    ]
    completions = asyncio.run(engine(host).generate(requests))
    assert [c.token_ids for c in completions] == [[2, 7], [2, 8], [2, 9]]
    assert completions[0].logprobs == [0.0, -0.5] and completions[0].finish_reason == "length"
    path, body = next(entry for entry in host.seen if entry[1]["input_ids"] == [1, 2, 7])
    assert path == "/generate" and body["return_logprob"] is True and "image_data" not in body
    sent = body["sampling_params"]
    assert (sent["temperature"], sent["top_p"], sent["stop_token_ids"], sent["sampling_seed"]) == (0.5, 0.9, [770], 7)


def test_end_tokens_are_ignored_only_where_no_stop_token_is_named(host):
    """SGLang skips its check of stop ids, too, where it is to ignore end tokens."""
    for stops in ((), (770, 769)):
        asyncio.run(engine(host).generate([Request([1], max_new_tokens=1, stop_token_ids=stops)]))
    assert [body["sampling_params"]["ignore_eos"] for _, body in host.seen] == [True, False]


def test_images_arrive_as_pictures_that_give_the_same_patches_and_one_pad_each(host):
    rng = np.random.default_rng(0)
    config = ImageConfig()
    encoded = [encode_image(rng.integers(0, 256, size, dtype=np.uint8), config) for size in ((30, 60, 3), (28, 28, 3))]
    pixels = torch.cat([torch.from_numpy(values) for values, _ in encoded])
    grids = [grid for _, grid in encoded]
    request = Request([5, *[PAD] * 6, PAD, 6], pixel_values=pixels, grid_thws=grids, max_new_tokens=1)
    asyncio.run(engine(host).generate([request]))
    body = host.seen[0][1]
    assert body["input_ids"] == [5, PAD, PAD, 6]
    again = [
        encode_image(base64.b64decode(uri.removeprefix("data:image/png;base64,")), config) for uri in body["image_data"]
    ]
    assert [grid for _, grid in again] == grids
    assert torch.equal(torch.cat([torch.from_numpy(values) for values, _ in again]), pixels)


def test_videos_are_refused_before_anything_is_sent(host):
    video = Request([PAD], pixel_values=torch.zeros(8, 3, 14, 14), grid_thws=[(2, 2, 2)])
    with pytest.raises(MoonflowError, match="images only"):
        asyncio.run(engine(host).generate([video]))
    assert host.seen == []


def test_overload_is_retried_and_then_told(host):
    host.script = [(503, "busy"), (500, "oops")]
    assert asyncio.run(engine(host).generate([Request([1, 2], max_new_tokens=1)]))[0].token_ids == [2]
    assert len(host.seen) == 3
    host.script = [(503, "busy")] * 9
    with pytest.raises(MoonflowError, match="failed 4 times, last: HTTP 503") as told:
        asyncio.run(engine(host).generate([Request([1])]))
    assert len(host.seen) == 7
    assert not isinstance(told.value, Unavailable)  # it may be this request that it cannot answer


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, {"error": {"message": "too long"}}, "HTTP 400: .*too long"),
        (200, ["not", "an", "object"], "HTTP 200"),
        (200, {"meta_info": {"finish_reason": {"type": "stop"}}}, "without output_token_logprobs"),
        (200, {"meta_info": {"finish_reason": {"type": "tired"}, "output_token_logprobs": []}}, "'tired'"),
    ],
)
def test_refusals_and_foreign_answers_are_told_at_once(host, status, body, told):
    host.script = [(status, body)]
    with pytest.raises(MoonflowError, match=told):
        asyncio.run(engine(host).generate([Request([1])]))
    assert len(host.seen) == 1


def test_an_aborted_generation_is_an_aborted_completion(host):
    meta = {"finish_reason": {"type": "abort", "message": "Aborted"}, "output_token_logprobs": [[-1.0, 3, None]]}
    host.script = [(200, {"meta_info": meta})]
    completion = asyncio.run(engine(host).generate([Request([1])]))[0]
    assert (completion.token_ids, completion.logprobs, completion.finish_reason) == ([3], [-1.0], "abort")
    host.script = [(200, {"meta_info": {"finish_reason": {"type": "abort", "message": "Abort before prefill"}}})]
    assert asyncio.run(engine(host).generate([Request([1])]))[0] == Completion([], [], "abort")


def test_weights_are_updated_from_a_folder_or_the_reason_is_told(host, tmp_path):
    asyncio.run(engine(host).update_weights(tmp_path))
    asyncio.run(engine(host).update_weights(tmp_path, breaks_off=True))
    sent = {"model_path": str(tmp_path), "flush_cache": True}
    breaking_off = {**sent, "abort_all_requests": True}
    assert host.seen == [("/update_weights_from_disk", sent), ("/update_weights_from_disk", breaking_off)]
    host.script = [(400, {"success": False, "message": "Failed to load weights"})]
    with pytest.raises(MoonflowError, match="Failed to load weights"):
        asyncio.run(engine(host).update_weights(tmp_path))


def test_one_request_that_takes_too_long_is_one_failure(monkeypatch):
    async def late(*_, **__):
        raise httpx.ReadTimeout("")

    monkeypatch.setattr(httpx.AsyncClient, "post", late)
    with pytest.raises(MoonflowError, match="failed 2 times, last: ReadTimeout") as told:
        asyncio.run(SGLangEngine("http://127.0.0.1:9", PAD, attempts=2, backoff_s=0.01).generate([Request([1])]))
    assert not isinstance(told.value, Unavailable)


def test_health(host):
    asyncio.run(engine(host).wait_until_healthy(timeout_s=5))


def test_an_absent_host_is_told():
    absent = SGLangEngine("http://127.0.0.1:9", PAD, attempts=2, backoff_s=0.01)
    with pytest.raises(Unavailable, match="failed 2 times"):
        asyncio.run(absent.generate([Request([1])]))
    with pytest.raises(MoonflowError, match="not healthy"):
        asyncio.run(absent.wait_until_healthy(timeout_s=0.05))
