"""``reasoning_gym``: four easy families of the reasoning-gym package (Apache-2.0), asked in few words.

Held out: operands, not seeds. The numbers (or the name) a problem is about are hashed into one of 100 buckets, and
buckets 0 to 9 are eval's, so no eval problem is a training problem in another order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from model.data.families.family import Family, operand_source, operand_sources
from model.data.samples.sample import Sample, Split

SEEDS = 2**31 - 1  # reasoning-gym seeds problem i of a dataset with seed + i
NAMES = ("chain_sum", "number_sorting", "number_filtering", "needle_haystack")
CONFIGS: dict[str, dict[str, Any]] = {  # sizes are ours: answers of at most a dozen tokens
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "number_sorting": {
        "min_numbers": 2, "max_numbers": 4, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 99,
    },
    "number_filtering": {
        "min_numbers": 2, "max_numbers": 4, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 99,
    },
    "needle_haystack": {"min_num_statements": 2, "max_num_statements": 4},
}  # fmt: skip


def _whole(numbers: list[str]) -> str:
    return " ".join(str(int(float(number))) for number in numbers) or "none"


def _chain_sum(problem: dict[str, Any]) -> tuple[str, str, str]:
    expression = problem["metadata"]["expression"]
    operands = " ".join(sorted(re.findall(r"\d+", expression)))
    return f"{expression} =", problem["answer"], operands


def _number_sorting(problem: dict[str, Any]) -> tuple[str, str, str]:
    facts = problem["metadata"]
    answer = _whole(facts["sorted_numbers"])
    return f"Sort {facts['direction']}: {_whole(facts['original_numbers'])}", answer, " ".join(sorted(answer.split()))


def _number_filtering(problem: dict[str, Any]) -> tuple[str, str, str]:
    facts = problem["metadata"]
    operation = facts["operation"].replace("_", " ")
    numbers = _whole(facts["original_numbers"])
    question = f"{operation.capitalize()} than {facts['filter_value']}: {numbers}"
    return question, _whole(facts["result"]), " ".join(sorted(numbers.split()))


def _needle_haystack(problem: dict[str, Any]) -> tuple[str, str, str]:
    question = problem["question"].replace(" Reply only with a name.", "").replace(". ", ".\n").replace("\n\n", "\n")
    # One statement a line: a name then has the same tokens there and in the answer.
    return question, problem["answer"], problem["answer"]


# name -> (question, answer, operands) of a problem
READERS: dict[str, Callable[[dict[str, Any]], tuple[str, str, str]]] = {
    "chain_sum": _chain_sum,
    "number_sorting": _number_sorting,
    "number_filtering": _number_filtering,
    "needle_haystack": _needle_haystack,
}


def reasoning_sources(split: Split) -> list[str]:
    return operand_sources(NAMES, split)


@cache
def _dataset(name: str) -> Any:
    import reasoning_gym  # 1.7 s: only when a problem is asked for

    return reasoning_gym.create_dataset(name, seed=0, size=SEEDS, **CONFIGS[name])


def reasoning_gym(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A problem of one of ``NAMES`` whose operands belong to the split."""
    name = NAMES[int(rng.integers(len(NAMES)))]
    dataset = _dataset(name)
    while True:
        question, answer, operands = READERS[name](dataset[int(rng.integers(SEEDS))])
        if (source := operand_source(name, operands, split)) is not None:
            break
    return Sample(
        key=f"reasoning_gym-{index:08d}", family="reasoning_gym", ability="reasoning", modality="text",
        source=source,
        messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        answer=answer, reward="exact",
    )  # fmt: skip


REASONING_GYM = Family("reasoning_gym", "reasoning", "text", "task", reasoning_gym, reasoning_sources)
