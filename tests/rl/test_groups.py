"""Figures of the episodes of a round."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from re import findall, sub

import pytest

from model.rl.environment import FAILED
from model.rl.groups import outcome, pass_at, rewarded_groups
from model.rl.tasks.task import TaskSample
from tests.samples import make_episode, make_sample

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n: int) -> None:
    for correct in range(n + 1):
        samples = [number < correct for number in range(n)]
        for k in range(1, n + 1):
            choices = [any(chosen) for chosen in combinations(samples, k)]
            assert pass_at(k, n, correct) == pytest.approx(sum(choices) / len(choices))


def test_a_round_has_pass_at_k_over_the_prompts_that_have_k_episodes_and_rewards_by_ability_and_modality() -> None:
    right, wrong = (
        make_episode(reward=1.0, correct=True, metrics={"tool_calls": 0.0}),
        make_episode(metrics={"tool_calls": 0.0, "part/recall": 0.5}),
    )
    lost = replace(wrong, finish_reason=FAILED)
    samples = [make_sample(reward="box"), make_sample(ability="reasoning", modality="text"),
               TaskSample("k", "Sky", "reasoning", "image", "s")]  # fmt: skip
    played = [[right, wrong, wrong], [wrong, wrong, wrong], [right, wrong, lost]]
    _, figures = rewarded_groups(0, samples, played, outcome, None)
    passed = {name: value for name, value in figures.items() if "pass_at" in name}
    assert passed == pytest.approx(
        {"accuracy/pass_at_1": (1 / 3 + 0 + 1 / 2) / 3, "accuracy/pass_at_2": (2 / 3 + 0 + 1) / 3,
         "accuracy/pass_at_3": (1 + 0) / 2}
    )  # fmt: skip
    assert figures["reward/knowledge/image"] == pytest.approx(1 / 3) and figures["reward/reasoning/text"] == 0.0
    assert figures["reward/reasoning/image"] == 0.5 and figures["reward/reasoning"] == pytest.approx(1 / 5)
    assert figures["reward/part/box/recall"] == figures["reward/task/Sky/recall"] == 0.5


def test_every_figure_of_a_round_is_in_the_table_of_the_readme() -> None:
    rounds = json.loads((ROOT / "tests" / "golden" / "rl.json").read_text())
    table = (ROOT / "model" / "rl" / "README.md").read_text().split("## Figures")[1].split("\n## ")[0]
    known = [sub("<[a-z]+>", "*", name) for name in findall(r"`([a-z_]+/[^`]+|gradient_norm|learning_rate)`", table)]
    logged = {name for row in rounds for name in row} - {"step"}
    assert logged and not [name for name in logged if not any(fnmatch(name, one) for one in known)]
