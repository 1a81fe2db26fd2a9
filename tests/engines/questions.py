"""Chats as any OpenAI client sends them, and what moonflow itself makes of them: its prompt and its greedy answer.

The prompts come from held-out tasks and from conversations written here for what tasks do not have.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from components.serve.openai_api import parse, to_engine
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.engines.checkpoint import CONTEXT
from tests.tiny_folders import eval_samples

NEW_TOKENS = 64
TEXT_FAMILIES = ("fact_qa", "reasoning_gym")
IMAGE_FAMILIES = ("digit_string", "digit_count", "ocr_line", "photo", "chart", "grounding")

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "what the sky does",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Question:
    """``chat``: the body for ``/v1/chat/completions``; ``request``: the same as moonflow's server hands it on."""

    name: str
    chat: dict[str, Any]
    request: Request


def questions(tokenizer: Tokenizer) -> list[Question]:
    """14 of text, two of them longer than the positions before YaRN's extension, and 13 with images."""
    question = partial(_question, tokenizer)
    tasks = [sample for family in TEXT_FAMILIES for sample in eval_samples(family, 5)]
    tasks += [sample for family in IMAGE_FAMILIES for sample in eval_samples(family, 2)]
    asked = [question(sample.key, [_user(sample)]) for sample in tasks]
    documents = [" ".join(part["text"] for part in sample.segments) for sample in eval_samples("stdlib_text", 8)]
    text = " ".join(documents)
    asked += [question(f"long-{start}", [{"role": "user", "content": text[start : start + 900]}]) for start in (0, 900)]
    asked.append(question("conversation", _conversation(), tools=[WEATHER]))
    asked.append(question("thinking", _conversation(), thinking=True))
    first, second = (_user(sample)["content"] for sample in (eval_samples("chart", 1)[0], eval_samples("photo", 1)[0]))
    asked.append(question("two-images", [{"role": "user", "content": [*first, *second]}]))
    return asked


def own_answers(checkpoint: Path, requests: Sequence[Request]) -> list[Completion]:
    return asyncio.run(EmbeddedEngine.load(checkpoint).generate(requests))


def _question(
    tokenizer: Tokenizer, name: str, messages: list[dict[str, Any]], thinking: bool = False, **fields: Any
) -> Question:
    chat = {
        "model": "model",
        "messages": messages,
        "max_tokens": NEW_TOKENS,
        "temperature": 0.0,
        "chat_template_kwargs": {"thinking": thinking},
        **fields,
    }
    read = to_engine(parse(json.dumps(chat).encode()), tokenizer, ImageConfig(), CONTEXT)
    return Question(name, chat, replace(read.requests[0], stop_token_ids=()))


def _user(task: Sample) -> dict[str, Any]:
    turn = task.messages[0]
    assert turn["role"] == "user", f"{task.key} does not begin with a user's turn"
    if isinstance(turn["content"], str):
        return turn
    return {"role": "user", "content": [_part(part, task.media) for part in turn["content"]]}


def _part(part: dict[str, Any], media: dict[str, bytes]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(media[part['media']]).decode()}"},
    }


def _conversation() -> list[dict[str, Any]]:
    """Every role, a tool call with its result, and reasoning that is history by the last turn."""
    call = {"name": "weather", "arguments": json.dumps({"city": "Zürich", "days": 2}, ensure_ascii=False)}
    return [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "How will it be in Zürich?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I have to look.",
            "tool_calls": [{"id": "functions.weather:0", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": "snow, 3 cm"},
        {"role": "assistant", "content": "White.", "reasoning_content": "It snows."},
        {"role": "user", "content": "And the day after?"},
    ]
