"""The answers of thinking problems against another computation, and the two styles of their thinking."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date, datetime, timedelta
from math import prod

import numpy as np
import pytest

from model.data.families.family import SPLITS
from model.data.families.thinking import KINDS, REQUESTS, THINKING
from model.data.families.thinking.problem import Kind
from model.data.samples.sample import Sample, Split

ROUND = 2 * len(KINDS)  # every kind in both styles
LEAST = ("shortest", "youngest", "slowest")


def kind_of(sample: Sample) -> str:
    return sample.key.split("-")[1]


def solve(kind: str, question: str) -> str:
    """The answer, worked out from the question without the steps."""
    ints = [int(number) for number in re.findall(r"\d+", question)]
    quoted = re.findall('"(.*?)"', question)
    if kind == "count_letter":
        letter, word = sorted(quoted, key=len)
        return str(word.count(letter))
    if kind == "reverse":
        return quoted[0][::-1]
    if kind == "weekday":
        monday = date(2024, 1, 1)
        days = [monday + timedelta(days=n) for n in range(7)]
        (start,) = [day for day in days if f"{day:%A}" in question]
        return f"{start + timedelta(days=ints[0]):%A}"
    if kind == "clock":
        time = re.search(r"\d+:\d\d", question)
        assert time is not None
        (later,) = [int(number) for number in re.findall(r"\d+", question.replace(time[0], ""))]
        end = datetime.strptime(time[0], "%H:%M") + timedelta(minutes=later)
        return f"{end.hour}:{end:%M}"
    if kind == "order":
        pairs = re.findall(r"(\w+) is \w+ than (\w+)\.", question)
        side = {a for a, _ in pairs}, {b for _, b in pairs}
        (found,) = side[1] - side[0] if any(word in question for word in LEAST) else side[0] - side[1]
        return str(found)
    if kind == "change":
        return str(max(ints) - min(ints) * sorted(ints)[1])
    results = {
        "add": lambda: sum(ints), "multiply": lambda: prod(ints), "remainder": lambda: max(ints) % min(ints),
        "sort": lambda: " ".join(map(str, sorted(ints))), "spread": lambda: max(ints) - min(ints),
        "even_sum": lambda: sum(number for number in ints if not number & 1),
    }  # fmt: skip
    return str(results[kind]())


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right_and_thinking_leads_to_them(split: Split) -> None:
    seen = Counter[str]()
    for index in range(20 * ROUND):
        sample = THINKING.sample(0, split, index)
        _, question, reply = sample.messages
        assert solve(kind_of(sample), question["content"]) == sample.answer == reply["content"], sample.key
        assert re.search(rf"(^|[=:\n]){re.escape(sample.answer)}$", reply["reasoning"]), sample.key
        seen[f"{kind_of(sample)} {sample.environment['style']}"] += 1
    assert len(seen) == ROUND and set(seen.values()) == {20}


def test_every_equation_in_the_thinking_holds() -> None:
    checked = 0
    for index in range(20 * ROUND):
        for equation in re.findall(
            r"\d[\d+*-]*(?:=\d[\d+*-]*)+", THINKING.sample(1, "train", index).messages[-1]["reasoning"]
        ):
            values = {eval(side) for side in equation.split("=")}  # digits and signs alone
            assert len(values) == 1, equation
            checked += 1
    assert checked > 500


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_both_styles_solve_the_same_problem(kind: Kind) -> None:
    rng, lengths = np.random.default_rng(5), {"short": 0, "long": 0}
    assert len(kind.wordings) >= 3
    for _ in range(60):
        problem = kind.draw(rng, "train")
        for style in REQUESTS:
            thought = problem.thinking(style)
            assert re.search(rf"(^|[=:\n]){re.escape(problem.answer)}$", thought)
            lengths[style] += len(thought)
        assert "\n" not in problem.short
    assert lengths["long"] > 1.4 * lengths["short"]


def test_the_system_turn_asks_for_the_style() -> None:
    for split in SPLITS:
        seen = {style: set[str]() for style in REQUESTS}
        for index in range(10 * ROUND):
            sample = THINKING.sample(0, split, index)
            assert sample.messages[0]["role"] == "system" and sample.thinks
            seen[sample.environment["style"]].add(sample.messages[0]["content"])
        for style, requests in REQUESTS.items():
            assert seen[style] == set(requests if split == "eval" else requests[:-1])


def test_no_eval_problem_is_a_training_problem() -> None:
    """Whatever the wording and the order of its numbers."""
    found = {
        split: {
            (kind_of(sample), *sorted(re.findall(r'\d+|"\w+"|[A-Z]\w+(?= is|\.)', sample.messages[1]["content"])))
            for sample in (THINKING.sample(0, split, index) for index in range(30 * ROUND))
            if kind_of(sample) not in ("order", "weekday")  # their words stand in other places
        }
        for split in SPLITS
    }
    assert len(found["eval"]) > 200 and not found["train"] & found["eval"]
