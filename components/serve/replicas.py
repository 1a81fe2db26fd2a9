"""The serve check's question to every SGLang replica of an endpoint, by token ids over its native API (source: ours).

A Service answers for all its pods; this asks each of them, so that none is left with older weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from components.serve.endpoint import POLL_S, EndpointAnswer
from model.boundary.errors import MoonflowError
from model.codec.chat import parse_assistant
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_prompt
from model.rollout.addresses import replica_urls
from model.rollout.protocol import Completion, Request
from model.rollout.sglang import SGLangEngine
from model.train.protocol import Progress

ANSWER_S = 60.0


def await_replicas(
    addresses: Sequence[str],
    sample: Sample,
    tokenizer: Tokenizer,
    image_config: ImageConfig,
    manifest_sha256: str,
    *,
    max_tokens: int,
    timeout: float,
    progress: Progress,
) -> EndpointAnswer:
    """Ask repeatedly until every replica has answered from the promoted weights; returns the first one's answer.

    Args:
        addresses: see ``model.rollout.addresses``; looked up again each time.
        sample: the task whose question is asked, greedily.
        timeout: seconds until that is given up. A later attempt goes on waiting.

    Raises:
        MoonflowError: some replica has not answered from these weights in time; it is named.
    """
    prompt = tokenize_prompt(sample, tokenizer, image_config)
    ids = [int(token) for token in prompt.input_ids]
    stop = (tokenizer.im_end_id,)
    request = Request(ids, prompt.pixel_values, prompt.grid_thws, max_tokens, temperature=0.0, stop_token_ids=stop)
    began = time.monotonic()
    while True:
        completions, seen = asyncio.run(_ask_all(addresses, request, tokenizer, image_config, manifest_sha256))
        if not seen:
            turn = parse_assistant(completions[0].token_ids, tokenizer)
            return EndpointAnswer(turn.content, manifest_sha256)
        waited = time.monotonic() - began
        if waited >= timeout:
            raise MoonflowError(
                f"not every replica of {', '.join(addresses)} answers from the promoted weights {manifest_sha256[:12]} "
                f"after {timeout:g} s ({seen}): see that it is synced with Git and its pods are ready, then start the "
                "run again under the same run id; only this step is left to do"
            )
        progress.update(int(waited), int(timeout) + 1)
        time.sleep(min(POLL_S, timeout - waited))


async def _ask_all(
    addresses: Sequence[str], request: Request, tokenizer: Tokenizer, image_config: ImageConfig, manifest_sha256: str
) -> tuple[list[Completion], str]:
    """Every replica's answer; and what is wrong with one of them, "" if nothing is."""
    urls = await replica_urls(addresses)

    async def ask(url: str) -> Completion:
        engine = SGLangEngine(url, tokenizer.media_pad_id, image_config, attempts=1, timeout_s=ANSWER_S)
        return (await engine.generate([request]))[0]

    answers = await asyncio.gather(*(ask(url) for url in urls), return_exceptions=True)
    completions: list[Completion] = []
    for url, answer in zip(urls, answers, strict=True):
        if isinstance(answer, MoonflowError):
            return [], str(answer)
        if isinstance(answer, BaseException):
            raise answer
        if answer.weights != manifest_sha256:
            return [], f"{url} answers from weights {answer.weights[:12] or 'that it does not name'}"
        completions.append(answer)
    return completions, ""
