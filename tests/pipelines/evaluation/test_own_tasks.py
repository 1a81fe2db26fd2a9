"""``moonflow evaluate --task``: a user's tasks on any checkpoint, here one that always answers "2"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.evaluation.command import Run, suite
from tests.rl.tasks.user_tasks import HERE


def tasks(*names: str) -> list[str]:
    return [word for name in names for word in ("--task", f"{HERE}:{name}")]


def test_a_users_tasks_are_suites_beside_ours_and_broken_ones_cost_none(
    two: Path, run: Run, scored: Callable[..., dict[str, Any]]
) -> None:
    found = scored(two, *tasks("Say", "Even", "NoPrompts"), *suite("digit_count", "Say"), "--tasks", 4)
    rows = {row["suite"]: row for row in found["suites"]}
    assert list(rows) == ["digit_count", "Say", "Even"], "a task that was given is run, whatever --suite names"
    assert (rows["Say"]["correct"], rows["Say"]["n"], rows["Say"]["chance"]) == (1, 4, 0.25)  # prompts 0 to 3
    assert rows["Say"]["figures"]["part/length"] == 1.0
    assert "it has 0 prompts to evaluate" in found["passed_over"]["NoPrompts"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "sky"], "write module:name"),
        (["--task", "sky:digit_count"], "there is a suite digit_count already"),
        ([*tasks("Even"), *suite("Evem")], "did you mean Even"),
        (["--task", "tests.rl.tasks.user_tasks:Nobody"], "Nobody"),
    ],
)
def test_a_task_that_is_none_is_one_line(arguments: list[str], told: str, two: Path, run: Run) -> None:
    code, out, err = run(two, *arguments)
    assert (code, out) == (2, "") and told in err.splitlines()[-1]
