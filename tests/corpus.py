"""Text for small tokenizers in tests: a standard library module and the chat template's own words."""

from __future__ import annotations

import argparse
import inspect
from functools import cache

from model.codec.chat import render
from model.codec.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "ipython", "arguments": {"code": "print(1)"}}]},
    {"role": "tool", "tool_call_id": "functions.ipython:0", "content": "1"},
    {"role": "assistant", "content": "1"},
]

DECLARED = ["ipython", "search", "create_subagent", "assign_task"]  # not all tools: a new one would move every token id


def corpus() -> list[str]:
    source = inspect.getsource(argparse)
    template = [piece.text for piece in render(CONVERSATION, DECLARED) if piece.kind == "text"]
    return [source[start : start + 500] for start in range(0, 60_000, 500)] + template * 50


@cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(corpus(), ranks=768)
