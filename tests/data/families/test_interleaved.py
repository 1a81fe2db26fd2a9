"""Pictures and texts in one context: both parts' losses stay, and the forms all occur."""

from __future__ import annotations

from collections import Counter

import pytest

from model.codec.image import ImageConfig
from model.data.families.interleaved import INTERLEAVED
from model.data.samples.sample import Sample, Split
from model.data.samples.tokenize import tokenize
from tests.tiny_folders import small_tokenizer


def form(sample: Sample) -> str:
    if sample.segments:
        return "document"
    users = [turn for turn in sample.messages if turn["role"] == "user"]
    if len(users) == 1:
        return "picture above the question"
    return "text first" if isinstance(users[0]["content"], str) else "picture first"


def test_all_forms_occur() -> None:
    forms = Counter(form(INTERLEAVED.sample(0, "train", index)) for index in range(200))
    assert set(forms) == {"document", "picture above the question", "text first", "picture first"}
    assert min(forms.values()) >= 10


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_context_has_one_picture_and_a_text_of_another_family(split: Split) -> None:
    tokenizer, config = small_tokenizer(), ImageConfig()
    for index in range(40):
        sample = INTERLEAVED.sample(0, split, index)
        assert list(sample.media) == ["png"] and not sample.reward and sample.answer is None
        read = tokenize(sample, tokenizer, config)
        assert len(read.grid_thws) == 1
        # Every answer and every text with a loss is a target, and no question is.
        said = [turn["content"] for turn in sample.messages if turn["role"] == "assistant"]
        said += [segment["text"] for segment in sample.segments if segment.get("loss")]
        targets = tokenizer.decode(read.input_ids[read.loss_mask].tolist())
        assert all(text in targets for text in said)
        if not sample.tools:  # the words of a search are in its question too
            asked = [turn["content"] for turn in sample.messages if turn["role"] == "user"]
            assert not any(text in targets for text in asked if type(text) is str)


def test_some_contexts_call_a_tool_and_keep_the_system_turn_first() -> None:
    tokenizer, config = small_tokenizer(), ImageConfig()
    samples = [INTERLEAVED.sample(0, "train", index) for index in range(200)]
    calling = [sample for sample in samples if sample.tools]
    assert 20 <= len(calling) <= 80
    for sample in calling:
        assert [turn["role"] for turn in sample.messages].index("system") == 0
        read = tokenize(sample, tokenizer, config)
        assert "search" in tokenizer.decode(read.input_ids[read.loss_mask].tolist())
    assert {form(sample) for sample in calling} == {"picture above the question", "text first", "picture first"}
