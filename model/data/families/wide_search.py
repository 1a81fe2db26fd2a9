"""``wide_search``: an attribute of several real entities; ``sub_search``: the part of it one sub-agent does.

The model answers a wide search either by searching itself, one call after the other, or by a swarm: it creates one
sub-agent and assigns all items to it in one parallel turn. The question is the same in both and never asks to
parallelise. Held out: the entities.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from model.codec.tools import SWARM_TOOLS, created
from model.data.families.entities import Entity, Kind, draw, entities
from model.data.families.family import Family
from model.data.samples.sample import Sample, Split

SWARM_SHARE = 0.5  # of wide searches answered by a swarm in training data (ours)
MAX_ITEMS = 5  # keeps a trajectory under about 450 tokens (ours)
WIDE_TOOLS = ["search", *SWARM_TOOLS]
ATTRIBUTES: dict[Kind, tuple[str, ...]] = {
    "country": ("capital", "continent", "currency", "phone", "area"),
    "city": ("country", "continent"),
    "element": ("symbol", "number", "period", "group", "year"),
}
# Numbered lines, without spaces before a name: it then has the tokens that it has in a query and in an answer.
QUESTIONS = ("Find each:\n{items}", "Look these up:\n{items}", "What is each?\n{items}")
SUBAGENT_NAMES = ("finder", "seeker", "scout", "helper", "reader")
SUBAGENT_PROMPTS = ("Search and answer.", "Search, then answer briefly.", "Answer by one search.")


def _call(tool: str, /, **arguments: str) -> dict[str, Any]:
    return {"name": tool, "arguments": arguments}


def _result(tool: str, number: int, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"functions.{tool}:{number}", "content": content}


def _calls(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def _records(chosen: list[Entity]) -> dict[str, str]:
    """What a search finds: ``peru capital`` leads to ``Peru:Lima``."""
    return {
        f"{entity.name} {key}".lower(): f"{entity.name}:{value}"
        for entity in chosen
        for key, value in entity.attributes.items()
    }


@cache
def _pool(kind: Kind, attribute: str, split: Split) -> list[Entity]:
    return [entity for entity in entities(kind, split) if attribute in entity.attributes]


def _pick(rng: np.random.Generator, split: Split, at_most: int) -> tuple[list[Entity], str]:
    """One entity, or two to ``at_most`` of one kind, and an attribute that all of them have."""
    kinds = list(ATTRIBUTES)
    kind = kinds[int(rng.integers(len(kinds)))]
    attribute = str(rng.choice(ATTRIBUTES[kind]))
    wanted = int(rng.integers(2, at_most + 1)) if at_most > 1 else 1
    return draw(rng, _pool(kind, attribute, split), wanted), attribute


def _serial(queries: list[str], found: list[str]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for number, (query, line) in enumerate(zip(queries, found, strict=True)):
        turns += [_calls(_call("search", query=query)), _result("search", number, line)]
    return turns


def _swarm(rng: np.random.Generator, queries: list[str], found: list[str]) -> list[dict[str, Any]]:
    name = SUBAGENT_NAMES[int(rng.integers(len(SUBAGENT_NAMES)))]
    prompt = SUBAGENT_PROMPTS[int(rng.integers(len(SUBAGENT_PROMPTS)))]
    return [
        _calls(_call("create_subagent", name=name, system_prompt=prompt)),
        _result("create_subagent", 0, created(name)),
        _calls(*(_call("assign_task", agent=name, prompt=query) for query in queries)),
        *(_result("assign_task", number, line) for number, line in enumerate(found, start=1)),
    ]


def wide_search(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """Two to five entities of one kind, answered serially or by a swarm."""
    chosen, attribute = _pick(rng, split, MAX_ITEMS)
    queries = [f"{entity.name} {attribute}" for entity in chosen]
    answer = {entity.name: entity.attributes[attribute] for entity in chosen}
    found = [f"{name}:{value}" for name, value in answer.items()]
    items = "\n".join(f"{number}:{query}" for number, query in enumerate(queries, start=1))
    question = QUESTIONS[int(rng.integers(len(QUESTIONS)))].format(items=items)
    mode = "swarm" if rng.random() < SWARM_SHARE else "serial"
    turns = _swarm(rng, queries, found) if mode == "swarm" else _serial(queries, found)
    # Half of the serial training answers have only the search tool, as the single agent that a swarm is compared with.
    tools = ["search"] if mode == "serial" and split == "train" and rng.random() < 0.5 else WIDE_TOOLS
    return Sample(
        key=f"wide_search-{index:08d}", family="wide_search", ability="agentic", modality="text",
        source=chosen[0].source,
        messages=[{"role": "user", "content": question}, *turns, {"role": "assistant", "content": "\n".join(found)}],
        tools=tools, answer=answer, reward="table_f1", environment={"records": _records(chosen), "mode": mode},
    )  # fmt: skip


def sub_search(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """One entity, asked as a sub-agent is asked."""
    (entity,), attribute = _pick(rng, split, 1)
    query, found = f"{entity.name} {attribute}", f"{entity.name}:{entity.attributes[attribute]}"
    return Sample(
        key=f"sub_search-{index:08d}", family="sub_search", ability="agentic", modality="text", source=entity.source,
        messages=[
            {"role": "system", "content": SUBAGENT_PROMPTS[int(rng.integers(len(SUBAGENT_PROMPTS)))]},
            {"role": "user", "content": query},
            *_serial([query], [found]),
            {"role": "assistant", "content": found},
        ],
        tools=["search"], answer=found, reward="exact", environment={"records": _records([entity])},
    )  # fmt: skip


def wide_sources(split: Split) -> list[str]:
    """Entities with an attribute to search for."""
    pools = [_pool(kind, attribute, split) for kind, attributes in ATTRIBUTES.items() for attribute in attributes]
    return list(dict.fromkeys(entity.source for pool in pools for entity in pool))


WIDE_SEARCH = Family("wide_search", "agentic", "text", "task", wide_search, wide_sources)
SUB_SEARCH = Family("sub_search", "agentic", "text", "task", sub_search, wide_sources)
