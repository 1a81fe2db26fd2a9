from __future__ import annotations

from model.data.families.recall import RECALL, recall_sources, words


def test_the_loss_covers_only_what_stood_before() -> None:
    for index in range(500):
        before = ""
        for segment in RECALL.sample(0, "train", index).segments:
            if segment["loss"]:
                assert segment["text"].strip() in before
            before += segment["text"]
        assert "\n" in before


def test_a_queried_value_follows_its_key() -> None:
    checked = 0
    for index in range(500):
        segments = RECALL.sample(0, "eval", index).segments
        if segments[1]["loss"]:
            continue  # a repetition
        for query, value in zip(segments[1::2], segments[2::2], strict=True):
            assert not query["loss"] and value["loss"]
            assert ("\n" + segments[0]["text"] + "\n").count(query["text"] + value["text"] + "\n") == 1
            checked += 1
    assert checked > 300


def test_half_is_pairs_and_strings_do_not_come_back() -> None:
    documents = [RECALL.sample(0, "train", index).segments for index in range(1000)]
    assert 0.4 < sum(not segments[1]["loss"] for segments in documents) / 1000 < 0.6
    assert len({segments[0]["text"] for segments in documents}) == 1000


def test_no_word_is_in_both_splits() -> None:
    train = {word for source in recall_sources("train") for word in words(source, "train")}
    held_out = {word for source in recall_sources("eval") for word in words(source, "eval")}
    assert len(train) > 20_000 and len(held_out) > 2000
    assert not train & held_out
