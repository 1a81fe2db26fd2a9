"""``coding``: a small Python function from a description and two examples (source: ours).

The trajectory writes the function and runs the examples with the IPython tool; about a quarter of them have a wrong
version first, whose result or error shows it, and the loss leaves that turn out. The reply is the function.
It is verified by hidden tests, which run in the sandbox (``model.rl.verifier``): the reward is the share that passes.

There are 16 kinds (``KINDS``), in turn by the index of the sample, with parameters drawn at random and four styles of
program. A key names the kind: ``coding-above-00000016``. Values come from another computation than the programs; a
program that finds another one is an error. Held out: the parameters, and of every kind the last wording and the last
style, which only eval samples have, each in half of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from model.data.families.coding import lists, single
from model.data.families.coding.kind import Arguments, Fields, Kind, filled
from model.data.families.family import Family, choose
from model.data.families.programs.session import CellSession
from model.data.samples.sample import Sample, Split

KINDS: tuple[Kind, ...] = (*lists.KINDS, *single.KINDS)
REQUESTS = ("Write {call}: {what}.", "Define {call}. It returns {what}.", "Code {call} for {what}.",
            "A Python function {call}, please: {what}.")  # fmt: skip
SHOWN, HIDDEN = 2, 5  # tests of a task
MISTAKE_SHARE = 0.95  # of the tasks whose first cell is short enough to be written twice
MISTAKE_CHARS = 101
EVAL_PERCENT = 15  # of the choices of parameters of a kind
GENERAL_MISTAKES = ((":\n", "\n"), ("return ", ""), ("return ", "print("), ("):\n    ", "):\n"),
                    ("(xs):", "(x):"), ("(s):", "(text):"), ("(n):", "(x):"))  # fmt: skip


def _source(kind: Kind, fields: Fields) -> str:
    return f"{kind.name}/" + ",".join(f"{name}={value}" for name, value in fields.items())


@cache
def _parameters(number: int, split: Split) -> tuple[Fields, ...]:
    """The choices of parameters of a kind in a split: a hash ranks them, and the first are held out, at least one."""
    kind = KINDS[number]
    ranked = sorted(kind.parameters, key=lambda fields: zlib.crc32(_source(kind, fields).encode()))
    held_out = max(1, len(ranked) * EVAL_PERCENT // 100)
    return tuple(ranked[:held_out] if split == "eval" else ranked[held_out:])


def _tests(rng: np.random.Generator, kind: Kind, fields: Fields) -> list[tuple[Arguments, object]]:
    """Different arguments with their right values, which are not all alike among the shown and the hidden ones."""
    while True:
        found: dict[str, tuple[Arguments, object]] = {}
        while len(found) < SHOWN + HIDDEN:
            arguments = kind.arguments(rng, fields)
            found[repr(arguments)] = (arguments, kind.solve(fields, *arguments))
        tests = list(found.values())
        if all(len({repr(value) for _, value in part}) > 1 for part in (tests[:SHOWN], tests[SHOWN:])):
            return tests


def wrong_versions(rng: np.random.Generator, kind: Kind, style: str) -> list[str]:
    """The program with one mistake, in random order; not all of them need show in the examples."""
    mistakes = [*kind.mistakes, *GENERAL_MISTAKES]
    tried = (mistakes[i] for i in rng.permutation(len(mistakes)))
    return [style.replace(right, wrong, 1) for right, wrong in tried if right in style]


def _trajectory(program: str, wrong: Sequence[str], check: str, expected: str) -> list[dict[str, object]]:
    """The calls and their results: first the first wrong program whose check shows it, if there is one."""
    cells = [(f"{program}\n{check}", CellSession().run(f"{program}\n{check}")[0])]
    if cells[0][1] != expected:
        raise RuntimeError(f"this program prints {cells[0][1]!r}, but {expected!r} was computed:\n{program}")
    for mistaken in wrong:
        result, _ = CellSession().run(f"{mistaken}\n{check}")
        if result != expected and "RecursionError" not in result:  # how deep it was depends on the process
            cells.insert(0, (f"{mistaken}\n{check}", result))
            break
    turns: list[dict[str, object]] = []
    for number, (cell, result) in enumerate(cells):
        call = {"name": "ipython", "arguments": {"code": cell}}
        untrained = {} if number == len(cells) - 1 else {"loss": False}
        turns.append({"role": "assistant", "content": "", "tool_calls": [call], **untrained})
        turns.append({"role": "tool", "tool_call_id": f"functions.ipython:{number}", "content": result})
    return turns


def coding(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A function to write, with two examples; its hidden tests are the answer."""
    kind, choices = KINDS[index % len(KINDS)], _parameters(index % len(KINDS), split)
    fields = choices[int(rng.integers(len(choices)))]
    tests = _tests(rng, kind, fields)
    shown = tests[:SHOWN]
    what, style = filled(choose(rng, split, kind.wordings), fields), choose(rng, split, kind.styles)
    examples = [f"{kind.applied(arguments)} == {value!r}" for arguments, value in shown]
    question = "\n".join([choose(rng, split, REQUESTS).format(call=kind.call, what=what), *examples])
    check = f"print({', '.join(kind.applied(arguments) for arguments, _ in shown)})"
    program = filled(style, fields)
    mistaken = len(program) + len(check) < MISTAKE_CHARS and rng.random() < MISTAKE_SHARE
    wrong = [filled(each, fields) for each in wrong_versions(rng, kind, style)] if mistaken else []
    turns = _trajectory(program, wrong, check, " ".join(str(value) for _, value in shown))
    return Sample(
        key=f"coding-{kind.name}-{index:08d}", family="coding", ability="coding", modality="text",
        source=_source(kind, fields),
        messages=[{"role": "user", "content": question}, *turns, {"role": "assistant", "content": program}],
        tools=["ipython"], answer={kind.applied(arguments): repr(value) for arguments, value in tests[SHOWN:]},
        reward="tests",
    )  # fmt: skip


def coding_sources(split: Split) -> list[str]:
    return [_source(kind, fields) for number, kind in enumerate(KINDS) for fields in _parameters(number, split)]


CODING = Family("coding", "coding", "text", "task", coding, coding_sources)
