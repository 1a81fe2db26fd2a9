"""The serve check's question, and the wait until the synced endpoint answers it with what was promoted.

An answer names the weights that it is from in ``metadata.weight_version``: while pods are replaced, two requests to one
address can reach two checkpoints. Our server puts the manifest's digest there. SGLang puts the value of its option
``--weight-version`` there, which is the same digest (images/serve-entry.sh).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import openai

from model.boundary.errors import MoonflowError
from model.train.protocol import Progress

POLL_S = 15.0
_ANSWER_S = 60.0


@dataclass(frozen=True)
class EndpointAnswer:
    """An answer's text and the manifest digest of the weights that gave it, "" if the server does not say."""

    text: str
    manifest_sha256: str


def ask(address: str, model_name: str, question: str, image: str, max_tokens: int) -> EndpointAnswer:
    """Ask an OpenAI-compatible server (``address`` without ``/v1``) about a picture, a data URL.

    Raises:
        openai.OpenAIError: it is away or refuses.
    """
    client = openai.OpenAI(base_url=f"{address.rstrip('/')}/v1", api_key="none", timeout=_ANSWER_S, max_retries=0)
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    reply = client.chat.completions.create(
        model=model_name, messages=[{"role": "user", "content": content}], temperature=0.0,  # type: ignore
        max_tokens=max_tokens, extra_body={"chat_template_kwargs": {"thinking": False}},
    )  # fmt: skip
    told = getattr(reply, "metadata", None) or {}  # not part of the API, so the client has no such attribute
    return EndpointAnswer(reply.choices[0].message.content or "", str(told.get("weight_version", "")))


def await_answer(
    asked: Callable[[str], EndpointAnswer], address: str, manifest_sha256: str, timeout: float, progress: Progress
) -> EndpointAnswer:
    """Ask repeatedly until the answer is from the promoted weights.

    Args:
        asked: ``ask`` of an address; what it raises counts as no answer yet.
        timeout: seconds until that is given up. A later attempt goes on waiting.

    Raises:
        MoonflowError: no such answer in time.
    """
    began = time.monotonic()
    while True:
        try:
            answer = asked(address)
        except openai.OpenAIError as error:
            seen = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        else:
            if answer.manifest_sha256 == manifest_sha256:
                return answer
            seen = f"it answers from weights {answer.manifest_sha256[:12] or 'that it does not name'}"
        waited = time.monotonic() - began
        if waited >= timeout:
            raise MoonflowError(
                f"{address} does not answer from the promoted weights {manifest_sha256[:12]} after {timeout:g} s "
                f"({seen}): see that it is synced with Git and its pods are ready, then start the run again under the "
                "same run id; only this step is left to do"
            )
        progress.update(int(waited), int(timeout) + 1)
        time.sleep(min(POLL_S, timeout - waited))
