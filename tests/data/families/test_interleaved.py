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
    content = sample.messages[0]["content"]
    if len(sample.messages) == 2:
        return "picture above the question"
    return "text first" if isinstance(content, str) else "picture first"


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
        asked = [turn["content"] for turn in sample.messages if turn["role"] == "user" and type(turn["content"]) is str]
        assert not any(text in targets for text in asked)
