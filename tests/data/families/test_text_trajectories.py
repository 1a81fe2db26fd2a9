"""Families of thinking, functions and dialogues as they are trained on: lengths, and what the loss covers."""

from __future__ import annotations

import json
from itertools import groupby

import pytest

from model.codec.image import ImageConfig
from model.data.families import FAMILIES
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize
from model.evals.suites import SUITES
from tests.tiny_folders import tiny_tokenizer

NAMES = ("thinking", "coding", "dialogue")
ALL = pytest.mark.parametrize("name", NAMES)
MOST_TOKENS = 512


def some(name: str, count: int) -> list[Sample]:
    return [FAMILIES[name].sample(0, split, index) for split in ("train", "eval") for index in range(count)]


@ALL
def test_a_conversation_fits_a_row_and_the_suites_limits(name: str) -> None:
    suite, tokenizer = SUITES[name], tiny_tokenizer()
    for sample in some(name, 160):
        tokens = tokenize(sample, tokenizer, ImageConfig())
        assert len(tokens.input_ids) < MOST_TOKENS
        turns = [len(list(turn)) for trained, turn in groupby(tokens.loss_mask.tolist()) if trained]
        assert max(turns) < suite.max_new_tokens
        assert sum(turn["role"] == "assistant" for turn in sample.messages) <= suite.max_turns


def spoken(sample: Sample) -> str:
    """What the assistant writes, by the template, without the turns that the loss leaves out."""
    written, calls = [], 0
    for turn in sample.messages:
        if turn["role"] != "assistant":
            continue
        text = f"{turn['reasoning']}</think>" if turn.get("reasoning") else ""
        text += turn["content"]
        asked = turn.get("tool_calls", [])
        for number, call in enumerate(asked, calls):
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            text += "<|tool_calls_section_begin|>" if number == calls else ""
            text += f"<|tool_call_begin|>functions.{call['name']}:{number}<|tool_call_argument_begin|>{arguments}"
            text += "<|tool_call_end|>"
        calls += len(asked)
        text += "<|tool_calls_section_end|>" if asked else ""
        written += [f"{text}<|im_end|>"] if turn.get("loss", True) else []
    return "".join(written)


@ALL
def test_the_loss_covers_what_the_assistant_writes(name: str) -> None:
    tokenizer, left_out = tiny_tokenizer(), 0
    for sample in some(name, 48):
        tokens = tokenize(sample, tokenizer, ImageConfig())
        trained = tokens.input_ids[tokens.loss_mask].tolist()
        assert tokenizer.decode(trained) == spoken(sample)
        left_out += any(turn.get("loss") is False for turn in sample.messages)
    assert (left_out > 0) == (name == "coding")


def test_long_thinking_takes_at_least_twice_the_tokens_of_short_thinking() -> None:
    tokenizer, tokens = tiny_tokenizer(), {"short": 0, "long": 0}
    for sample in some("thinking", 240):
        tokens[sample.environment["style"]] += len(tokenizer.encode(sample.messages[-1]["reasoning"]))
    assert tokens["long"] > 2 * tokens["short"]
