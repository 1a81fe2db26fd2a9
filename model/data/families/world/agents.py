"""Scripted agents that really use the world's tools: their conversations are the reference trajectories (source: ours).

They know what their prompt says and what the tools have shown, never the truth. A `Plan` says how a task is begun,
into which parts it falls, how one agent does a part, and how the answer is made of the parts' results. A single agent
does all parts in one conversation; a swarm gives each to a sub-agent with a conversation of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.codec.tools import created
from model.data.families.programs.session import CellSession
from model.data.families.world.index import View, downloaded, world
from model.data.families.world.pages import links, stated

_HIT = re.compile(r"(\d+):(.+)\|(\d{4}-\d{2})\|.*")
_HEAD = re.compile(r"(\d+):(.+)\|\d{4}-\d{2}\|(\d+)/(\d+)")


class LostError(Exception):
    """A scripted agent did not find what it looked for."""


@dataclass
class Conversation:
    """What one agent did: ``turns`` are the messages of its calls and their results."""

    view: View
    turns: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    _cells: CellSession | None = None

    def call(self, tool: str, /, **arguments: str) -> str:
        """Call a tool and return what it shows."""
        self._say([(tool, arguments, shown := self._run(tool, arguments))])
        return shown

    def delegate(
        self, agent: str, system_prompt: str, prompts: Sequence[str], answers: Sequence[str], at_once: int
    ) -> None:
        """Create a sub-agent, and give it the tasks, ``at_once`` of them in a turn."""
        self._say([("create_subagent", {"name": agent, "system_prompt": system_prompt}, created(agent))])
        pairs = list(zip(prompts, answers, strict=True))
        for start in range(0, len(pairs), at_once):
            group = pairs[start : start + at_once]
            self._say([("assign_task", {"agent": agent, "prompt": prompt}, answer) for prompt, answer in group])

    def _say(self, done: Sequence[tuple[str, dict[str, str], str]]) -> None:
        calls = [{"name": tool, "arguments": arguments} for tool, arguments, _ in done]
        self.turns.append({"role": "assistant", "content": "", "tool_calls": calls})
        for tool, _, shown in done:
            call_id = f"functions.{tool}:{self.calls}"
            self.turns.append({"role": "tool", "tool_call_id": call_id, "content": shown})
            self.calls += 1

    def _run(self, tool: str, arguments: dict[str, str]) -> str:
        if tool == "search":
            return world().search(arguments["query"], self.view)
        if tool == "open_page":
            return world().open_page(arguments["page"], arguments["window"], self.view)
        if self._cells is None:
            self._cells = CellSession([])
            self._cells.run("files = {}")
        if tool == "ipython":
            return self._cells.run(arguments["code"])[0]
        content = world().file(arguments["file"])
        if content is None:
            raise LostError(f"there is no file {arguments['file']}")
        self._cells.run(f"files[{arguments['file']!r}] = {content!r}")  # no scripted program replaces the name
        return downloaded(arguments["file"], content)


@dataclass(frozen=True)
class Part:
    """A part of a task: what a sub-agent is told, and how an agent does it and words the result."""

    prompt: str
    work: Callable[[Conversation], str]


@dataclass(frozen=True)
class Plan:
    """How a task is solved: what comes before the parts, the parts, and the answer from their results.

    ``told`` says whether the question tells the parts, of which there are several: then nothing comes before them.
    """

    begin: Callable[[Conversation], list[Part]]
    conclude: Callable[[list[str]], str]
    told: bool = False


def alone(plan: Plan, view: View) -> tuple[Conversation, str]:
    """One agent's conversation, and its answer."""
    talk = Conversation(view)
    return talk, plan.conclude([part.work(talk) for part in plan.begin(talk)])


def by_swarm(
    plan: Plan, view: View, agent: str, system_prompt: str, at_once: int | None = None
) -> tuple[Conversation, str, list[Conversation]]:
    """An orchestrator's conversation, its answer, and the conversations of its sub-agents.

    Args:
        at_once: parts that it gives away in one turn; None: all of them.
    """
    talk = Conversation(view)
    parts = plan.begin(talk)
    subs = [Conversation(view) for _ in parts]
    results = [part.work(sub) for part, sub in zip(parts, subs, strict=True)]
    talk.delegate(agent, system_prompt, [part.prompt for part in parts], results, at_once or len(parts))
    return talk, plan.conclude(results), subs


def find(talk: Conversation, title: str, queries: Sequence[str]) -> str:
    """The number of the newest page of a title, searched for in one query after the other.

    Raises:
        LostError: no query shows the title.
    """
    for query in queries:
        hits = [_HIT.fullmatch(line) for line in talk.call("search", query=query).split("\n")]
        same = [(hit[3], hit[1]) for hit in hits if hit and hit[2] == title]
        if same:
            return max(same)[1]
    raise LostError(f"no search shows {title!r}")


def pages_lines(talk: Conversation, page: str) -> tuple[str, list[str]]:
    """The title of a page and all its lines, window after window."""
    title, lines, window, last = "", [], 1, 1
    while window <= last:
        head, *more = talk.call("open_page", page=page, window=str(window)).split("\n")
        if (match := _HEAD.fullmatch(head)) is None:
            raise LostError(f"page {page} does not open: {head}")
        title, last = match[2], int(match[4])
        lines += more
        window += 1
    return title, lines


def read(talk: Conversation, page: str, wanted: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The title of a page and the wanted values, from the page or, where it lacks them, from the one it links to.

    No window is opened after the last value is found.

    Raises:
        LostError: a value stands on neither page.
    """
    title, second, values = _until(talk, page, wanted)
    missing = [attribute for attribute in wanted if attribute not in values]
    if missing and second:
        values |= _until(talk, second, missing)[2]
    if not set(wanted) <= set(values):
        raise LostError(f"{title!r} states not all of {', '.join(wanted)}")
    return title, {attribute: values[attribute] for attribute in wanted}


def _until(talk: Conversation, page: str, wanted: Sequence[str]) -> tuple[str, str, dict[str, str]]:
    """The title, the number of the linked second page ("" if there is none), and the values; stops early."""
    title, second, values, window, last = "", "", dict[str, str](), 1, 1
    while window <= last and not set(wanted) <= set(values):
        head, *lines = talk.call("open_page", page=page, window=str(window)).split("\n")
        if (match := _HEAD.fullmatch(head)) is None:
            raise LostError(f"page {page} does not open: {head}")
        title, last = match[2], int(match[4])
        values = stated(lines) | values
        second = next((str(links(line)[0][0]) for line in lines if line.startswith("more:")), second)
        window += 1
    return title, second, values


def related(lines: Sequence[str], relation: str) -> list[tuple[int, str]]:
    """The links of a relation among a page's lines, which windows may have cut."""
    found: list[tuple[int, str]] = []
    inside = False
    for line in lines:
        inside = line.startswith(f"{relation}:") or (inside and re.match(r"\d{4,6}:", line) is not None)
        found += links(line) if inside else []
    return found
