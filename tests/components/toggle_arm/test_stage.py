"""What an arm of the Toggle ablation asks and how it counts; the whole arm is run in tests/pipelines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.toggle_arm.config import Config
from components.toggle_arm.stage import Repeated, final_metrics, summary
from model.boundary.errors import MoonflowError
from model.rl.environment import FAILED, Episode

SHORT = Episode([1, 2, 3], [False, True, True], [0.0] * 3, None, [], 1.0, "7", 1, "answer", correct=True)
LONG = replace(SHORT, input_ids=[1] * 9, policy_mask=[True] * 9, logprobs=[0.0] * 9)
WRONG = replace(SHORT, reward=0.0, correct=False)
BROKEN = Episode([], [], [], None, [], 0.0, "", 0, FAILED, failure="a/1: gone")


def test_a_longer_answer_counts_as_wrong_at_the_smaller_budget_and_a_failed_episode_not_at_all() -> None:
    found = summary([SHORT, LONG, WRONG, LONG, BROKEN], budget=8, allowed=0.2)
    assert found == {"accuracy": 75.0, "at_budget": 25.0, "tokens": 5.5, "n": 4, "failed": 1}
    assert final_metrics({"free_reading": found})["answers/free_reading/at_budget"] == 25.0
    with pytest.raises(MoonflowError, match="1 of 2 episodes failed.*a/1: gone"):
        summary([SHORT, BROKEN], budget=8, allowed=0.2)


def test_prompts_that_come_back_in_step_with_the_phases_are_refused() -> None:
    Config.parse({"prompts": 160}, "here")
    with pytest.raises(MoonflowError, match="come back every 8 rounds.*cycles of 4"):
        Config.parse({"prompts": 128}, "here")


def test_prompts_come_again_in_their_order() -> None:
    prompts = Repeated([10, 11, 12, 13], 3)  # type: ignore[arg-type]
    assert [prompts[n] for n in range(7)] == [10, 11, 12, 10, 11, 12, 10]
