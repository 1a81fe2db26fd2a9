from __future__ import annotations

from model.data.families.recall import RECALL, recall_sources, words


def kind(segments: list[dict]) -> str:
    if segments[1]["loss"]:
        return "repeat"
    return "walk" if segments[1]["text"] == "\n? " else "pairs"


def documents(split: str, count: int) -> list[list[dict]]:
    return [RECALL.sample(0, split, index).segments for index in range(count)]  # type: ignore[arg-type]


def test_the_loss_covers_only_what_stood_before() -> None:
    for segments in documents("train", 500):
        before = ""
        for segment in segments:
            if segment["loss"]:
                for part in (
                    segment["text"].strip().split(":") if kind(segments) == "walk" else [segment["text"].strip()]
                ):
                    assert part in before
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


def test_a_walk_takes_the_list_in_order_and_ends_with_every_answer() -> None:
    checked = 0
    for segments in documents("eval", 300):
        if kind(segments) != "walk":
            continue
        names = segments[0]["text"].split("\n")[1:]
        looked_up = {segments[i]["text"]: segments[i + 1]["text"].split("\n")[1] for i in range(2, len(segments) - 1, 3)
                     if segments[i - 1]["text"] == "\n? "}  # fmt: skip
        assert list(looked_up) == names
        answers = [segment["text"].strip() for segment in segments[-len(names) :]]
        assert answers == [f"{name}:{looked_up[name]}" for name in names]
        checked += 1
    assert checked > 50


def test_the_kinds_come_in_thirds_and_strings_do_not_come_back() -> None:
    drawn = documents("train", 1200)
    for name in ("repeat", "pairs", "walk"):
        assert 0.28 < sum(kind(segments) == name for segments in drawn) / 1200 < 0.39
    assert len({segments[0]["text"] for segments in drawn}) > 1190


def test_no_word_is_in_both_splits() -> None:
    train = {word for source in recall_sources("train") for word in words(source, "train")}
    held_out = {word for source in recall_sources("eval") for word in words(source, "eval")}
    assert len(train) > 20_000 and len(held_out) > 2000
    assert not train & held_out
