"""Problems with numbers. Every step is computed from the one before; answers come out of the steps."""

from __future__ import annotations

import numpy as np

from model.data.families.thinking.problem import Kind, Problem
from model.data.samples.sample import Split


def _column_sum(a: int, b: int) -> tuple[list[str], int]:
    """The steps of a written addition, from the last digit, and their result."""
    steps, digits, carry = [], "", 0
    width = max(len(str(a)), len(str(b)))
    for left, right in zip(reversed(f"{a:0{width}d}"), reversed(f"{b:0{width}d}"), strict=True):
        total = int(left) + int(right) + carry
        steps.append(f"{left}+{right}+{carry}={total}: write {total % 10}, carry {total // 10}")
        digits, carry = f"{total % 10}{digits}", total // 10
    total = int(f"{carry}{digits}")
    return [*steps, f"{a}+{b}={total}"], total


def _draw_add(rng: np.random.Generator, split: Split) -> Problem:
    terms = rng.integers(10, 100, int(rng.integers(2, 4))).tolist()
    total, short, long = terms[0], [], []
    for term in terms[1:]:
        steps, after = _column_sum(total, term)
        short.append(steps[-1])
        long += steps
        total = after
    written = " + ".join(map(str, terms))
    return Problem({"sum": written}, " ".join(map(str, sorted(terms))), ", ".join(short), tuple(long), str(total))


ADD = Kind(
    "add",
    (
        "Sum: {sum}", "Find {sum}.", "How much is {sum}?", "Tell me {sum}.", "What does {sum} make?",
        "Compute {sum}, please.", "The sum {sum} is what?", "What is {sum}?", "Work out {sum}.", "Add: {sum}",
        "{sum} = ?",
    ),
    _draw_add,
)  # fmt: skip


def _draw_multiply(rng: np.random.Generator, split: Split) -> Problem:
    a, b = int(rng.integers(11, 100)), int(rng.integers(3, 10))
    tens, ones = a // 10 * 10, a % 10
    parts = (tens * b, ones * b)
    product = sum(parts)
    last = f"{parts[0]}+{parts[1]}={product}"
    long = (f"{a}={tens}+{ones}", f"{tens}*{b}={parts[0]}", f"{ones}*{b}={parts[1]}", last)
    return Problem({"a": a, "b": b}, f"{a} {b}", last, long, str(product))


MULTIPLY = Kind(
    "multiply",
    (
        "Find {a} * {b}.", "How much is {a} times {b}?", "Compute {a} * {b}, please.", "What does {a} * {b} make?",
        "{a} * {b} = ?", "Take {a} {b} times: how much?", "The product of {a} and {b}?", "What is {a} * {b}?",
        "Multiply {a} by {b}.", "Work out {a} * {b}.", "{a} times {b}?",
    ),
    _draw_multiply,
)  # fmt: skip


def _draw_remainder(rng: np.random.Generator, split: Split) -> Problem:
    divisor = int(rng.integers(3, 10))
    number = int(rng.integers(divisor * 2, 100))
    long, rest = [], number
    for times in (10, 5, 2, 1):
        while divisor * times <= rest:
            taken = divisor * times
            long += [f"{divisor}*{times}={taken}, {rest}-{taken}={rest - taken}"]
            rest -= taken
    multiple = number - rest
    short = f"{divisor}*{multiple // divisor}={multiple}, {number}-{multiple}={rest}"
    long.append(f"{rest} is below {divisor}:{rest}")
    return Problem({"a": number, "b": divisor}, f"{number} {divisor}", short, tuple(long), str(rest))


REMAINDER = Kind(
    "remainder",
    (
        "Find the remainder of {a} / {b}.", "{a} divided by {b} leaves what?", "Work out {a} mod {b}.",
        "Which rest has {a} / {b}?", "How much remains of {a} after division by {b}?", "{a} mod {b} = ?",
        "Share {a} among {b}: how many are over?", "If you take {b} from {a} as often as you can, what is left?",
        "Take {b} from {a} as often as you can: what is left?",
        "As often as you can, take {b} from {a}. How much is left?",
        "What is left of {a} if {b} is taken as often as it can be?", "What is the remainder of {a} / {b}?",
        "Divide {a} by {b}: which rest?", "What is {a} mod {b}?",
        "What is left if you take {b} from {a} as often as you can?",
    ),
    _draw_remainder,
)  # fmt: skip


def _draw_change(rng: np.random.Generator, split: Split) -> Problem:
    price, count = int(rng.integers(11, 50)), int(rng.integers(2, 7))
    cost = price * count
    paid = -(-cost // 100) * 100 + 100 * int(rng.integers(2))
    tens, ones = price // 10 * 10, price % 10
    left = paid - cost
    long = (
        f"{tens}*{count}={tens * count}", f"{ones}*{count}={ones * count}",
        f"{tens * count}+{ones * count}={cost}", f"{paid}-{cost}={left}",
    )  # fmt: skip
    fields = {"price": price, "count": count, "paid": paid}
    return Problem(fields, f"{price} {count}", f"{price}*{count}={cost}, {paid}-{cost}={left}", long, str(left))


CHANGE = Kind(
    "change",
    (
        "Buy {count} books at {price} with {paid}. How much is left?",
        "You pay {paid} for {count} cups at {price} each. What comes back?",
        "{count} rides cost {price} each. What is left of {paid}?",
        "Of {paid}, spend {count} * {price}. What remains?",
        "With {paid} you buy {count} bags, each {price}. How much do you keep?",
        "Each hat is {price}. Take {count} and pay {paid}: what remains?",
        "{paid} is paid for {count} things of {price} each. What is given back?",
        "From {paid}, pay for {count} bags at {price}. What is left?",
        "Pay {count} times {price} from {paid}. What remains?",
        "{count} times {price} is paid from {paid}. How much do you keep?",
        "{count} pens cost {price} each. You pay {paid}. How much is left?",
        "You have {paid} and buy {count} tickets at {price}. What remains?",
        "One cup costs {price}. Pay {count} of them with {paid}: how much comes back?",
        "From {paid}, pay {count} times {price}. How much do you keep?",
    ),
    _draw_change,
)  # fmt: skip


def _numbers(rng: np.random.Generator, low: int, high: int) -> list[int]:
    """``low`` to ``high`` different numbers below 100."""
    numbers: list[int] = rng.permutation(np.arange(2, 100))[: int(rng.integers(low, high + 1))].tolist()
    return numbers


def _written(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _draw_sort(rng: np.random.Generator, split: Split) -> Problem:
    numbers = _numbers(rng, 3, 5)
    left, taken, long = list(numbers), [], []
    while left:
        taken.append(min(left))
        long.append(f"least of {_written(left)}: {taken[-1]}")
        left.remove(taken[-1])
    answer = _written(taken)
    short = f"{'<'.join(map(str, taken))}:{answer}"
    return Problem({"numbers": _written(numbers)}, answer, short, (*long, answer), answer)


SORT = Kind(
    "sort",
    (
        "Sort these, the least first: {numbers}", "Put {numbers} in order, from small to large.",
        "In order, please: {numbers}", "{numbers}: sort them upwards.", "Write in growing order: {numbers}",
        "List from small to large: {numbers}", "What is the order of {numbers}, the least first?",
        "Write {numbers} from the least to the largest.", "From least to largest: {numbers}",
        "Order these, the largest at the end: {numbers}", "Sort from small to large: {numbers}",
        "Put in order, the least first: {numbers}", "Order upwards: {numbers}",
        "Write these from the least to the largest: {numbers}",
    ),
    _draw_sort,
)  # fmt: skip


def _draw_even_sum(rng: np.random.Generator, split: Split) -> Problem:
    numbers = _numbers(rng, 4, 6)
    even = [number for number in numbers if number % 2 == 0]
    total, long, sums = 0, [], []
    for number in numbers:
        if number % 2 == 0:
            long.append(f"{number} is even: {total}+{number}={total + number}")
            sums.append(f"{total}+{number}={total + number}")
            total += number
        else:
            long.append(f"{number} is odd")
    short = ", ".join(sums[1:]) or f"only {_written(even)}:{total}" if even else f"none:{total}"
    fields = {"numbers": _written(numbers)}
    return Problem(fields, _written(sorted(numbers)), short, (*long, f"sum:{total}"), str(total))


EVEN_SUM = Kind(
    "even_sum",
    (
        "Take the even numbers and sum them: {numbers}", "Of {numbers}, add the even ones.",
        "{numbers}: what is the sum of the even ones?", "Find the sum of all even numbers: {numbers}",
        "Add the even numbers of {numbers}.", "How much are the even ones together? {numbers}",
        "Which sum have the even numbers? {numbers}", "Add the numbers that are not odd: {numbers}",
        "Without the odd ones, what is the sum of the rest? {numbers}",
        "Leave out what is odd. Sum the rest: {numbers}",
        "{numbers}: leave the odd numbers out and sum the even ones.", "Sum the even numbers: {numbers}",
        "Add up those that are even: {numbers}", "What do the even ones sum to? {numbers}",
        "Leave out odd numbers and add the rest: {numbers}",
    ),
    _draw_even_sum,
)  # fmt: skip


def _draw_spread(rng: np.random.Generator, split: Split) -> Problem:
    numbers = _numbers(rng, 3, 6)
    low = high = numbers[0]
    long = [f"{low}: least {low}, most {high}"]
    for number in numbers[1:]:
        low, high = min(low, number), max(high, number)
        long.append(f"{number}: least {low}, most {high}")
    last = f"{high}-{low}={high - low}"
    fields = {"numbers": _written(numbers)}
    return Problem(fields, _written(sorted(numbers)), last, (*long, last), str(high - low))


SPREAD = Kind(
    "spread",
    (
        "Find the largest minus the least: {numbers}", "{numbers}: how wide is the range?",
        "How much larger is the largest than the least? {numbers}", "Tell the range of {numbers}.",
        "What is the difference of largest and least? {numbers}", "Of {numbers}, take largest minus least.",
        "The range, please: {numbers}", "How far is the largest from the least? {numbers}",
        "Largest minus least: {numbers}", "What range have {numbers}?",
        "Take the least from the largest of {numbers}.",
    ),
    _draw_spread,
)  # fmt: skip

KINDS = (ADD, MULTIPLY, REMAINDER, CHANGE, SORT, EVEN_SUM, SPREAD)
