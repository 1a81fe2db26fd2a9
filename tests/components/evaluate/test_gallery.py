from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.evaluate import gallery
from components.evaluate.gallery import GALLERY, Gallery, gallery_before, gallery_steps
from components.evaluate.kinds import kind_metrics, kind_rows
from model.codec.image import ImageConfig
from model.data.samples.sample import Sample
from model.evals.scorer import reference_answer
from model.evals.suites import SUITES
from model.rl.environment import Episode
from tests.samples import make_episode
from tests.tiny_folders import eval_samples, tiny_tokenizer

NAMES = ("digit_count", "fact_qa")
TASKS = {name: eval_samples(name, 5) for name in NAMES}


@pytest.mark.parametrize(("steps", "chosen"), [
    (["init", "vit_pretrain", "joint_pretrain", "mid_train", "zero_vision_sft", "visual_rl", "rejection_sft",
      "joint_rl", "parl"],
     ["mid_train", "zero_vision_sft", "parl"]),
    (["import_checkpoint", "zero_vision_sft", "joint_rl"], ["import_checkpoint", "zero_vision_sft", "joint_rl"]),
    (["import_checkpoint", "zero_vision_sft"], ["import_checkpoint", "zero_vision_sft"]),
    (["init", "vit_pretrain", "mid_train"], ["init", "mid_train"]),
])  # fmt: skip
def test_a_gallery_compares_before_sft_after_it_and_the_end(steps: list[str], chosen: list[str]) -> None:
    assert gallery_steps(steps) == chosen


def made(before: dict[str, Any] | None = None, shared: int = 5, steps: tuple[str, ...] = ("init", "parl")) -> Gallery:
    counts = dict.fromkeys(NAMES, shared)
    return Gallery(TASKS, counts, steps, tiny_tokenizer(), ImageConfig(), before or {})


def answered(samples: tuple[Sample, ...], right: bool) -> list[Episode]:
    return [
        make_episode(response=reference_answer(sample) if right else "nothing", reward=float(right))
        for sample in samples
    ]


def evaluate(collected: Gallery, step: str, right: bool) -> None:
    watch = collected.watch(step)
    assert watch is not None
    for name in reversed(NAMES):  # in whatever order they end
        watch.finished(SUITES[name], answered(TASKS[name], right))


def test_the_first_tasks_of_every_suite_are_kept_and_a_later_attempt_goes_on(tmp_path: Path) -> None:
    first = made()
    assert first.watch("joint_rl") is None
    evaluate(first, "init", right=False)
    first.write(tmp_path)
    later = made(gallery_before(tmp_path))
    evaluate(later, "parl", right=True)
    later.write(tmp_path)
    found = json.loads((tmp_path / GALLERY).read_text())
    assert found["steps"] == ["init", "parl"] and list(found["suites"]) == list(NAMES)
    for name, cards in found["suites"].items():
        assert [card["key"] for card in cards] == [sample.key for sample in TASKS[name][:3]]
        scores = [[card["attempts"][step]["score"] for step in ("init", "parl")] for card in cards]
        assert scores == [[0.0, 1.0]] * 3
    assert found["suites"]["digit_count"][0]["pictures"] and not found["suites"]["fact_qa"][0]["pictures"]


def test_only_tasks_that_every_checkpoint_is_asked_are_kept(tmp_path: Path) -> None:
    collected = made(shared=2)
    evaluate(collected, "parl", right=True)
    collected.write(tmp_path)
    assert [len(cards) for cards in gallery_before(tmp_path)["suites"].values()] == [2, 2]


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = made()
    evaluate(collected, "parl", right=True)
    collected.write(tmp_path)
    whole = (tmp_path / GALLERY).stat().st_size
    monkeypatch.setattr(gallery, "MAX_BYTES", whole - 1)
    collected.write(tmp_path)
    assert (tmp_path / GALLERY).stat().st_size < whole
    assert [len(cards) for cards in gallery_before(tmp_path)["suites"].values()] == [2, 2]


def test_nothing_is_written_without_examples(tmp_path: Path) -> None:
    made().write(tmp_path)
    assert not list(tmp_path.iterdir()) and gallery_before(tmp_path) == gallery_before(None) == {}


def test_kinds_have_rows_and_metrics_where_there_are_any() -> None:
    old = {"digit_count": {"value": 1.0}}  # as it was written before there were kinds
    new = {"image_program": {"kinds": {"crop": {"value": 0.5, "tool_calls": 1.0, "n": 4}}}, **old}
    assert kind_rows({"init": old, "parl": new}, ["init", "parl"]) == [
        {"step": "parl", "suite": "image_program", "kind": "crop", "value": 0.5, "tool_calls": 1.0, "n": 4}
    ]
    assert kind_metrics(old) == {}
    assert kind_metrics(new) == {
        "kind/image_program/crop/value": 0.5,
        "kind/image_program/crop/tool_calls": 1.0,
        "kind/image_program/crop/n": 4.0,
    }
