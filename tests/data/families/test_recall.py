from __future__ import annotations

import numpy as np

from model.data.families.recall import RECALL, names_only, recall_sources, words


def kind(segments: list[dict]) -> str:
    return "repeat" if segments[1]["loss"] else "pairs"


def documents(split: str, count: int) -> list[list[dict]]:
    return [RECALL.sample(0, split, index).segments for index in range(count)]  # type: ignore[arg-type]


def test_the_loss_covers_only_what_stood_before() -> None:
    for segments in documents("train", 500):
        before = ""
        for segment in segments:
            if segment["loss"]:
                assert segment["text"].strip() in before
            before += segment["text"]
        assert "\n" in before


def test_a_queried_value_follows_its_key() -> None:
    checked = 0
    for segments in documents("eval", 500):
        if kind(segments) != "pairs":
            continue
        for query, value in zip(segments[1::2], segments[2::2], strict=True):
            assert not query["loss"] and value["loss"]
            assert ("\n" + segments[0]["text"] + "\n").count(query["text"] + value["text"] + "\n") == 1
            checked += 1
    assert checked > 300


def test_half_is_pairs_and_strings_do_not_come_back() -> None:
    drawn = documents("train", 1200)
    assert 0.43 < sum(kind(segments) == "pairs" for segments in drawn) / 1200 < 0.57
    # Two or three one-digit numbers can come twice by chance; nothing longer does.
    longer = [segments[0]["text"] for segments in drawn if len(segments[0]["text"]) > 12]
    assert len(longer) > 900 and len(set(longer)) == len(longer)


def test_no_word_is_in_both_splits() -> None:
    train = {word for source in recall_sources("train") for word in words(source, "train")}
    held_out = {word for source in recall_sources("eval") for word in words(source, "eval")}
    assert len(train) > 20_000 and len(held_out) > 2000
    assert not train & held_out


def test_documents_of_names_hold_words_of_their_split_alone() -> None:
    rng = np.random.default_rng(0)
    held_out = {word for source in recall_sources("eval") for word in words(source, "eval")}
    for index in range(100):
        sample = names_only(rng, "eval", index)
        for segment in sample.segments:
            text = segment["text"]
            if not segment["loss"] or "\n" in text.strip():
                continue
            value = text.strip()
            if kind(sample.segments) == "pairs":
                assert value in held_out
