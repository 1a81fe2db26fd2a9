"""The offline world of the agent swarm, and the task families that need it (source: ours).

``facts`` says what is true, ``pages`` what stands on which page, ``index`` what the tools show of it, ``agents`` how
scripted agents work, ``tasks`` what is asked. A sample's trajectory is that of one agent, or of an orchestrator whose
sub-agents each do a part: the question is the same in both. ``world_part`` has the sub-agents' own conversations. In
all of these the tools really ran. ``world_notes`` is what sub-agents bring back, to be put in order. Held out: the
things that are asked about, the last wording of every question, and the last template of the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from model.boundary.errors import MoonflowError
from model.codec.tools import SWARM_TOOLS
from model.data.families.family import Family, choose
from model.data.families.wide_search import SUBAGENT_NAMES
from model.data.families.world import tasks
from model.data.families.world.agents import Conversation, alone, by_swarm
from model.data.families.world.facts import KINDS
from model.data.families.world.index import View, world
from model.data.families.world.tasks import Drawn
from model.data.families.world.wordings import NOTES
from model.data.samples.sample import Sample, Split

Draw = Callable[[np.random.Generator, Split, int, View], Drawn]
DRAWS: dict[str, Draw] = {
    "world_wide": tasks.wide, "world_deep": tasks.deep, "world_document": tasks.document, "world_bulk": tasks.bulk,
    "world_easy": tasks.easy,
}  # fmt: skip
SIZES = (2, 3, 4, 6, 8, 16, 32)  # parts of a task (ours)
MAX_SIZE = 64  # the held-out things are enough for as many
SUBAGENT_PROMPTS = ("Use the tools, then answer in one line.", "Look it up; answer with the line alone.")


@dataclass(frozen=True)
class Delegation:
    """Which reference trajectories are a swarm's (values: ours).

    Attributes:
        share: of the tasks.
        mixed: whether these show the syntax alone, and not when or how widely to delegate: then easy tasks are among
            them, and a turn gives away one part, some or all. Otherwise a turn gives away all parts, and an easy task
            is always done by one agent.
        up_to: by family, the largest number of parts with which any is a swarm's; a family without one has no bound.
        bare: share of the tasks, before all others, whose orchestrator has no tools but the swarm's, and must delegate:
            it shows how a task is divided, whatever its size, and never whether to. Only of tasks whose question tells
            the parts.
    """

    share: float = 0.5
    mixed: bool = False
    up_to: Mapping[str, int] = field(default_factory=dict)
    bare: float = 0.0

    def chosen(self, name: str, size: int, rng: np.random.Generator) -> bool:
        """Whether a task of the family ``name`` with ``size`` parts is answered by a swarm."""
        if not self.mixed and name == "world_easy" or size > self.up_to.get(name, size):
            return False
        return rng.random() < self.share

    def at_once(self, parts: int, rng: np.random.Generator) -> int:
        """How many of the parts are given away in one turn."""
        return int(rng.integers(1, parts + 1)) if self.mixed else parts


def world_sample(
    name: str, sizes: Sequence[int], view: View, delegation: Delegation, rng: np.random.Generator, split: Split,
    index: int,
) -> Sample:  # fmt: skip
    """A task, answered by one agent or by a swarm."""
    size = int(rng.choice(sizes))
    drawn = DRAWS[name](rng, split, size, view)
    bare = split == "train" and delegation.bare > 0 and drawn.plan.told and rng.random() < delegation.bare
    swarm = bare or delegation.chosen(name, size, rng)
    agent, system_prompt = _named(rng)
    if swarm:
        talk, text, _ = by_swarm(drawn.plan, view, agent, system_prompt, delegation.at_once(drawn.size, rng))
    else:
        talk, text = alone(drawn.plan, view)
    # Half of the single agents of training cannot make a swarm, as the single agent that a swarm is compared with.
    lone = not swarm and split == "train" and rng.random() < 0.5
    prompt = [{"role": "user", "content": drawn.question}]
    tools = drawn.tools if lone else [*([] if bare else drawn.tools), *SWARM_TOOLS]
    mode = "swarm" if swarm else "single"
    return _sample(name, index, drawn, drawn.text, view, mode, prompt, talk, text, tools, drawn.answer, drawn.reward)


def part_sample(view: View, rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A part of a task, as a sub-agent is asked and does it."""
    name = list(DRAWS)[index % (len(DRAWS) - 1)]
    # Of a task with 2 to 16 parts (ours), so that a sub-agent meets items with any of these numbers before them.
    drawn = DRAWS[name](rng, split, int(rng.integers(2, 17)), view)
    _, system_prompt = _named(rng)
    parts = drawn.plan.begin(Conversation(view))
    part = parts[int(rng.integers(len(parts)))]
    talk = Conversation(view)
    text = part.work(talk)
    prompt = [{"role": "system", "content": system_prompt}, {"role": "user", "content": part.prompt}]
    return _sample("world_part", index, drawn, text, view, "part", prompt, talk, text, drawn.tools, text, "exact")


def notes_sample(view: View, rng: np.random.Generator, split: Split, index: int) -> Sample:
    """What sub-agents of a wide search brought back, to be put in order; in half of them with what they were asked.

    An orchestrator that merges must copy each value from the line of its own item, where every line has a value of that
    name. Whole orchestrations have few such tokens for their length; here the answer is two fifths. Values have changed
    places, so that they must be copied and cannot be known.
    """
    drawn = tasks.wide(rng, split, int(rng.integers(2, 13)), view)  # parts (ours)
    names, *values = zip(*drawn.answer["rows"], strict=True)
    rows = list(zip(names, *(map(str, rng.permutation(column)) for column in values), strict=True))
    lines = ["|".join(row) for row in rows]
    asked = [part.prompt for part in drawn.plan.begin(Conversation(view))] if rng.random() < 0.5 else []
    notes = "\n".join(rng.permutation([*asked, *lines]))
    prompt = [{"role": "user", "content": choose(rng, split, NOTES).format(notes=notes)}]
    text, answer = "\n".join(lines), tasks.table(drawn.answer["columns"], rows)
    return _sample(
        "world_notes", index, drawn, text, view, "notes", prompt, Conversation(view), text, [], answer, drawn.reward
    )


def _named(rng: np.random.Generator) -> tuple[str, str]:
    agent = SUBAGENT_NAMES[int(rng.integers(len(SUBAGENT_NAMES)))]
    return agent, SUBAGENT_PROMPTS[int(rng.integers(len(SUBAGENT_PROMPTS)))]


def _sample(
    name: str, index: int, drawn: Drawn, true: str, view: View, mode: str, prompt: list[dict[str, Any]],
    talk: Conversation, text: str, tools: list[str], answer: Any, reward: str,
) -> Sample:  # fmt: skip
    if text != true:
        raise RuntimeError(f"a scripted agent answers {text!r} to {drawn.question!r}, but {true!r} is true")
    return Sample(
        key=f"{name}-n{drawn.size}-{index:08d}", family=name, ability="agentic", modality="text", source=drawn.source,
        messages=[*prompt, *talk.turns, {"role": "assistant", "content": text}],
        tools=tools, answer=answer, reward=reward,
        environment={"world": asdict(view), "mode": mode, "parts": drawn.size},
    )  # fmt: skip


def sources(split: Split) -> list[str]:
    """All things that may be asked about."""
    return [thing.source for kind in KINDS for thing in world().facts.of(kind, split)]


def world_family(
    name: str, sizes: Sequence[int] = SIZES, view: View | None = None, delegation: Delegation | None = None
) -> Family:
    """A family of ``DRAWS`` with tasks of these numbers of parts, whose tools show so much at once.

    Raises:
        MoonflowError: a number of parts is out of bounds.
    """
    if not sizes or not all(1 <= size <= MAX_SIZE for size in sizes):
        raise MoonflowError(f"sizes of {name}: give numbers of parts from 1 to {MAX_SIZE}, not {list(sizes)}")
    generate = partial(world_sample, name, tuple(sizes), view or View(), delegation or Delegation())
    return Family(name, "agentic", "text", "task", generate, sources)


WORLD_PART = Family("world_part", "agentic", "text", "task", partial(part_sample, View()), sources)
WORLD_NOTES = Family("world_notes", "agentic", "text", "task", partial(notes_sample, View()), sources)

FAMILIES = (*map(world_family, DRAWS), WORLD_PART, WORLD_NOTES)
