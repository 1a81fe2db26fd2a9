"""Tasks without a data folder are those of a data folder; what a model cannot hold is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.prepare_data.config import HELD_OUT_SEED, Config
from components.prepare_data.stage import PlannedShard, write
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.evals.drawn import chosen, drawn, obstacle
from model.evals.suites import SUITES
from tests.shards import read_shard
from tests.tiny_folders import tiny_tokenizer


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_drawn_tasks_are_those_that_prepare_data_writes(suite, tmp_path) -> None:
    config = Config(seed=3)
    (tmp_path / "eval").mkdir()
    shard = PlannedShard(suite.family, "eval", 0, 0, 6)
    write(shard, tmp_path, config)
    written = [suite.task(sample) for sample in read_shard(tmp_path / shard.name)]
    tasks = drawn(suite, 6, HELD_OUT_SEED)
    assert len(tasks) == suite.tasks(6) and tasks == written[: len(tasks)]
    assert drawn(suite, 6, HELD_OUT_SEED + 1) != tasks


def test_suites_are_chosen_by_name_in_the_order_of_the_table() -> None:
    assert chosen([]) == list(SUITES.values())
    assert [suite.name for suite in chosen(["photo", "fact_qa", "photo"])] == ["fact_qa", "photo"]
    with pytest.raises(MoonflowError, match="no suite 'fact_q'; did you mean fact_qa.*the suites are fact_qa, .*chart"):
        chosen(["photo", "fact_q"])


def said(
    name: str, context: int = 512, vocabulary: int = 2000, videos: bool = True, documents: bool = True, **task
) -> str:
    tasks = [replace(sample, **task) for sample in drawn(SUITES[name], 3, 0)]
    return obstacle(
        SUITES[name], tasks, tiny_tokenizer(), ImageConfig(), context=context, vocabulary=vocabulary, videos=videos,
        documents=documents,
    )  # fmt: skip


def test_what_fits_has_no_obstacle() -> None:
    assert {said(name) for name in SUITES} == {""}
    assert said("fact_qa", videos=False) == said("photo", videos=False) == said("photo", documents=False) == ""


def test_what_a_model_cannot_hold_is_said() -> None:
    assert "leaves no room in the context of 16" in said("fact_qa", context=16)
    assert "has token" in said("fact_qa", vocabulary=700) and "knows only 700" in said("fact_qa", vocabulary=700)
    assert "videos" in said("video_clip", videos=False)
    assert "documents to complete" in said("needle", documents=False)
    # A swarm's prompt declares more tools than a single agent's.
    single, swarm = (
        min(n for n in range(20, 400) if not said(name, context=n))
        for name in ("wide_search_single", "wide_search_swarm")
    )
    assert single < swarm


def test_a_document_that_is_too_long_is_no_obstacle_unless_all_are() -> None:
    assert said("needle", context=300) == said("video_needle", context=300) == ""
    assert "leaves no room in the context of 16" in said("needle", context=16)


def test_one_broken_task_is_left_to_its_episode() -> None:
    assert "nothing to ask" in said("fact_qa", messages=[])
    tasks = drawn(SUITES["fact_qa"], 3, 0)
    tasks[1] = replace(tasks[1], messages=[])
    told = obstacle(
        SUITES["fact_qa"], tasks, tiny_tokenizer(), ImageConfig(), context=512, vocabulary=2000, videos=True,
        documents=True,
    )  # fmt: skip
    assert told == ""
