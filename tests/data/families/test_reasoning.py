from __future__ import annotations

import re

from model.data.families.reasoning import NAMES, REASONING_GYM
from model.data.samples.sample import Sample


def solve(sample: Sample) -> str:
    """The answer, worked out from the question without reasoning-gym."""
    question = sample.messages[0]["content"]
    if question.endswith("="):
        first, sign, second = question.removesuffix(" =").split(" ")
        return str(int(first) + int(second) if sign == "+" else int(first) - int(second))
    if question.startswith("Sort"):
        numbers = [int(number) for number in question.split(": ")[1].split()]
        return " ".join(map(str, sorted(numbers, reverse="descending" in question)))
    if "than" in question and ":" in question:
        (found,) = re.findall(r"(Keep|Remove) (smaller|larger) than (\d+): (.*)", question)
        verb, side, limit, rest = found
        numbers = [int(number) for number in rest.split()]
        beyond = [n for n in numbers if (n < int(limit) if side == "smaller" else n > int(limit))]
        chosen = beyond if verb == "Keep" else [n for n in numbers if n not in beyond]
        return " ".join(map(str, chosen)) or "none"
    *statements, asked = question.split("\n")
    wanted = asked.removeprefix("Who ").removesuffix("?")
    (name,) = [line.split(" ", 1)[0] for line in statements if line.split(" ", 1)[1].rstrip(".") == wanted]
    return name


def test_answers_are_right() -> None:
    for index in range(600):
        sample = REASONING_GYM.sample(0, "train", index)
        assert solve(sample) == sample.answer == sample.messages[-1]["content"], sample


def test_all_four_families_occur_with_short_answers() -> None:
    samples = [REASONING_GYM.sample(0, "train", index) for index in range(200)]
    assert {sample.source.split("/")[0] for sample in samples} == set(NAMES)
    assert max(len(sample.answer) for sample in samples) <= 24


def test_no_eval_operands_in_training() -> None:
    def operands(split: str) -> set[tuple[str, ...]]:
        found = set()
        for index in range(3000):
            sample = REASONING_GYM.sample(0, split, index)  # type: ignore[arg-type]
            question = sample.messages[0]["content"]
            name = sample.source.split("/")[0]
            if name == "needle_haystack":
                found.add((name, sample.answer))
            else:
                numbers = question.split(": ")[-1] if ":" in question else question
                found.add((name, *sorted(re.findall(r"\d+", numbers))))
        return found

    train, held_out = operands("train"), operands("eval")
    assert len(train) > 500 and len(held_out) > 100
    assert not train & held_out
