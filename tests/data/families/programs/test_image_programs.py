"""The samples of both families: what is shown, what is held out, and that the real tool gives the same results."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from model.codec.chat import ToolCall
from model.codec.image import ImageConfig, read_rgb
from model.data.families import FAMILIES
from model.data.families.family import SPLITS, Family
from model.data.families.programs import (
    IMAGE_PROGRAM,
    IMAGE_PROGRAM_IMAGE,
    KINDS,
    MOST_CALLS,
    NARROW,
    NARROW_PROGRAM_IMAGE,
    TRAINED,
    UNTRAINED,
)
from model.data.families.programs.kind import MASK_NAMES, Kind, filled
from model.data.families.programs.session import CellSession
from model.data.order.mixtures import MIXTURES
from model.data.samples.sample import Sample, Split
from model.data.samples.tokenize import tokenize
from model.evals.suites import SUITES
from model.rl.rewards import score
from model.rl.tools.toolset import Toolset
from tests.tiny_folders import tiny_tokenizer

BOTH = pytest.mark.parametrize("family", [IMAGE_PROGRAM, IMAGE_PROGRAM_IMAGE], ids=lambda family: family.name)
ALL_KINDS = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
NAMES = [kind.name for kind in KINDS]
OF_SPLIT = {"train": TRAINED, "eval": KINDS}


def some(family: Family, split: Split, rounds: int, seed: int = 0) -> list[Sample]:
    """So many samples of each kind of the split."""
    return [family.sample(seed, split, index) for index in range(rounds * len(OF_SPLIT[split]))]


def kind_of(sample: Sample) -> str:
    return sample.key.split("-")[1]


def asked(sample: Sample) -> str:
    content = sample.messages[0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def cells(sample: Sample) -> list[str]:
    return [turn["tool_calls"][0]["arguments"]["code"] for turn in sample.messages if "tool_calls" in turn]


def results(sample: Sample) -> list[str]:
    return [turn["content"] for turn in sample.messages if turn["role"] == "tool"]


def is_a_mistake(turn: dict[str, Any]) -> bool:
    return turn.get("loss") is False


async def replay(samples: Sequence[Sample]) -> list[list[str]]:
    with Toolset() as toolset:
        found = []
        for sample in samples:
            async with toolset.episode(sample) as tools:
                calls = (
                    ToolCall(f"functions.ipython:{n}", "ipython", {"code": c}) for n, c in enumerate(cells(sample))
                )
                found.append([await tools.call(call) for call in calls])
        return found


@BOTH
def test_the_tool_prints_what_the_trajectory_says(family: Family) -> None:
    samples = some(family, "train", 12) + some(family, "eval", 8)
    assert asyncio.run(replay(samples)) == [results(sample) for sample in samples]
    assert {kind_of(sample) for sample in samples} == set(NAMES)
    assert sum(is_a_mistake(turn) for sample in samples for turn in sample.messages) > 10


@BOTH
@pytest.mark.parametrize("split", SPLITS)
def test_the_last_result_is_the_answer(family: Family, split: Split) -> None:
    for sample in some(family, split, 20):
        assert results(sample)[-1] == sample.messages[-1]["content"] == str(sample.answer)
        assert score(sample.reward, sample.messages[-1]["content"], sample.answer) == 1.0
        assert sample.reward == ("number" if isinstance(sample.answer, int) else "exact")
        assert 1 <= len(cells(sample)) <= MOST_CALLS and sample.tools == ["ipython"]
        assert [turn.get("tool_call_id") for turn in sample.messages if turn["role"] == "tool"] == [
            f"functions.ipython:{number}" for number in range(len(cells(sample)))
        ]


@BOTH
def test_a_quarter_starts_with_a_mistake_that_the_next_cell_repairs(family: Family) -> None:
    samples, errors = some(family, "train", 60), Counter[str]()
    for sample in samples:
        for number, turn in enumerate(sample.messages):
            error = turn["role"] == "tool" and "Error: " in turn["content"]
            assert error == (number == 2 and is_a_mistake(sample.messages[1]))
            if error:
                errors[turn["content"].splitlines()[-1].split(":")[0]] += 1
                assert "0x" not in turn["content"], "an address differs from run to run"
                wrong, right = cells(sample)[:2]
                assert wrong != right and len(right) <= 160
    assert 0.2 < errors.total() / len(samples) < 0.3
    assert {"NameError", "AttributeError", "SyntaxError", "IndexError", "AxisError", "TypeError"} <= set(errors)
    assert max(errors.values()) < 0.5 * errors.total()


def test_the_text_family_never_shows_its_pixels() -> None:
    for sample in some(IMAGE_PROGRAM, "train", 10) + some(IMAGE_PROGRAM, "eval", 5):
        assert not sample.media and sample.modality == "text"
        assert all(isinstance(turn["content"], str) for turn in sample.messages) and len(asked(sample)) < 120


def test_the_twin_shows_every_picture_that_its_programs_find() -> None:
    for sample in some(IMAGE_PROGRAM_IMAGE, "train", 10) + some(IMAGE_PROGRAM_IMAGE, "eval", 5):
        *shown, text = sample.messages[0]["content"]
        assert text["type"] == "text" and [part["media"] for part in shown] == list(sample.media)
        named = sample.environment.get("images") or [sample.environment["array"]]
        assert named == list(sample.media) and sample.modality == "image"
        assert (len(named) > 1) == (kind_of(sample) in ("diff_frames", "track_motion", "new_objects"))
        for medium in named:
            assert {side % 28 for side in read_rgb(sample.media[medium]).size} == {0}


@BOTH
def test_kinds_come_in_turn_and_three_in_evaluation_only(family: Family) -> None:
    assert [kind_of(sample) for sample in some(family, "eval", 2)] == NAMES * 2
    assert some(family, "eval", 1)[3].key == f"{family.name}-measure_area-00000003"
    assert len(set(NAMES)) == len(NAMES) == 15
    trained = [name for name in NAMES if name not in ("measure_length", "largest_region", "new_objects")]
    assert [kind_of(sample) for sample in some(family, "train", 3)] == trained * 3
    assert set(NAMES) - set(trained) == UNTRAINED and len(trained) == 12


def test_narrow_trajectories_show_three_kinds_in_one_wording_and_one_style_without_mistakes() -> None:
    written: dict[str, set[tuple[int, int]]] = {}
    by_name = {kind.name: kind for kind in KINDS}
    samples = [NARROW_PROGRAM_IMAGE.sample(0, "train", index) for index in range(60)]
    for sample in samples:
        kind = by_name[kind_of(sample)]
        programs = ["\n\n".join(style.cells) for style in kind.styles]
        (wording,) = written_as(asked(sample), kind.wordings)
        (style,) = written_as("\n\n".join(cells(sample)), programs)
        written.setdefault(kind.name, set()).add((wording, style))
        assert not any(is_a_mistake(turn) for turn in sample.messages)
        assert sample.media and sample.messages[0]["content"][0] == {"type": "image", "media": next(iter(sample.media))}
        assert results(sample)[-1] == sample.messages[-1]["content"]
        assert (sample.answer, sample.reward, sample.environment) == (None, "", {}), "RL and evaluation ask tasks only"
    assert written == {kind.name: {(0, 0)} for kind in NARROW} and len(NARROW) == 3
    assert not UNTRAINED & {kind.name for kind in NARROW}
    assert len({repr(sample.media) for sample in samples}) == len(samples)


def written_as(text: str, templates: Sequence[str]) -> list[int]:
    """Which of the templates the text fills."""
    patterns = ("".join(".+?" if part.startswith("$") else re.escape(part) for part in re.split(r"(\$\w+)", template))
                for template in templates)  # fmt: skip
    return [number for number, pattern in enumerate(patterns) if re.fullmatch(pattern, text, re.IGNORECASE)]


@BOTH
def test_the_last_wording_and_the_last_style_are_held_out(family: Family) -> None:
    for split in SPLITS:
        seen: dict[str, set[tuple[str, int]]] = {name: set() for name in NAMES}
        for number, sample in enumerate(some(family, split, 40)):
            kind = OF_SPLIT[split][number % len(OF_SPLIT[split])]
            programs = ["\n\n".join(style.cells) for style in kind.styles]
            written = "\n\n".join(cells(sample)[is_a_mistake(sample.messages[1]) :])
            (wording,), (style,) = written_as(asked(sample), kind.wordings), written_as(written, programs)
            seen[kind.name] |= {("wording", wording), ("style", style)}
        for kind in OF_SPLIT[split]:
            held_out = {("wording", len(kind.wordings) - 1), ("style", len(kind.styles) - 1)}
            assert held_out <= seen[kind.name] if split == "eval" else not held_out & seen[kind.name]
            if split == "train":
                assert len(seen[kind.name]) == len(kind.wordings) + len(kind.styles) - 2, "all others are shown"


@BOTH
def test_splits_share_no_picture(family: Family) -> None:
    pictures = {
        split: {json.dumps(sample.environment) + repr(sample.media) for sample in some(family, split, 10)}
        for split in SPLITS
    }
    assert pictures["train"].isdisjoint(pictures["eval"])


@ALL_KINDS
@pytest.mark.parametrize("split", SPLITS)
def test_every_style_finds_what_was_drawn(kind: Kind, split: Split) -> None:
    """Also the styles that the split does not show, in pictures of every size."""
    rng = np.random.default_rng(7)
    assert len(kind.styles) >= 4 and len(kind.wordings) >= 4
    for _ in range(40):
        height, width = int(rng.integers(28, 85)), int(rng.integers(kind.least_width, 85))
        scene = kind.draw(rng, split, height, width)
        assert {img.shape for img in scene.images} == {(height, width, 3) if kind.colour else (height, width)}
        assert {img.dtype for img in scene.images} == {np.dtype(np.uint8)}
        for style in kind.styles:
            session = CellSession(scene.images)
            fields = {**scene.fields, "m": MASK_NAMES[int(rng.integers(len(MASK_NAMES)))]}
            printed = [session.run(filled(cell, fields)) for cell in style.cells]
            assert printed[-1] == (str(scene.answer), False), style.name
            assert not any(failed for _, failed in printed)


@ALL_KINDS
def test_answers_vary(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    answers = Counter(kind.draw(rng, "train", 42, 84).answer for _ in range(200))
    assert answers.most_common(1)[0][1] < (0.62 if len(answers) == 4 else 0.35) * 200


@BOTH
def test_a_conversation_fits_a_row_and_the_suites_limits(family: Family) -> None:
    tokenizer, suite = tiny_tokenizer(), SUITES[family.name]
    for sample in some(family, "train", 12) + some(family, "eval", 12):
        tokens = tokenize(sample, tokenizer, ImageConfig())
        assert len(tokens.input_ids) < 512
        assert len(cells(sample)) < suite.max_turns
        turns = [len(list(turn)) for trained, turn in groupby(tokens.loss_mask.tolist()) if trained]
        assert max(turns) < suite.max_new_tokens


def test_no_mixture_reads_a_picture_in_fine_tuning() -> None:
    for shares in MIXTURES.values():
        assert IMAGE_PROGRAM.name in shares.trajectories
        assert {FAMILIES[name].modality for name in shares.trajectories} == {"text"}


def test_a_program_that_prints_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CellSession, "run", lambda self, cell: ("-1", False))
    with pytest.raises(RuntimeError, match="crop, style '.*' prints '-1'"):
        IMAGE_PROGRAM.sample(0, "train", 0)
