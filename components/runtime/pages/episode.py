"""The page of one swarm episode: lanes of the agents over time, the critical path, and every message (source: ours).

``episode.html`` lays it out. All texts come from data, models and tools; the template escapes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.runtime.pages import template
from components.runtime.pages.charts import ticks
from components.runtime.pages.numbers import duration
from model.swarm.trace import Agent, Step, Trace

_PAGE = Path(__file__).with_name("episode.html")
SHORT = 90  # characters of a message in a lane's label or in the text that a bar shows under the pointer

NO_ANSWER = {
    "length": "a turn was too long",
    "turns": "all turns were used",
    "budget": "all steps were used",
    "context": "no room was left in the context",
    "malformed": "its turn could not be read",
    "failed": "it broke",
    "empty": "it said nothing",
    "stopped": "it was stopped",
}
"""Why an agent has no answer; any other reason is shown as it is."""


@dataclass(frozen=True)
class Bar:
    """One step in a lane.

    Attributes:
        left, width: percent of the episode's time.
        css: "completion", "tool" or "waiting".
        title: what it is, in one line.
        anchor: id of the step further down on the page.
    """

    left: float
    width: float
    css: str
    title: str
    anchor: str


@dataclass(frozen=True)
class Lane:
    """One agent.

    Attributes:
        critical: whether it is on the critical path.
        ended: why it has no answer; "" if it has one.
        steps: each with the id of its place on the page.
        first: whether a group of agents begins with it.
    """

    place: int
    agent: Agent
    critical: bool
    ended: str
    bars: Sequence[Bar]
    steps: Sequence[tuple[str, Step]]
    first: bool

    @property
    def task(self) -> str:
        return brief(self.agent.task)


def render(trace: Trace) -> str:
    """The page, with no script, font or picture from elsewhere."""
    lanes = list(_lanes(trace))
    return template.render(
        _PAGE,
        title=f"swarm episode {trace.about.get('task', '')}".strip(),
        trace=trace,
        totals=trace.totals,
        right=trace.reward is not None and trace.reward >= 1.0,
        ended=ended(trace.outcome),
        groups=trace.groups,
        widest=max(map(len, trace.groups), default=0),
        lanes=lanes,
        marks=[(100 * at / _span(trace), seconds(at)) for at in _marks(_span(trace))],
        seconds=seconds,
    )


def ended(outcome: str) -> str:
    """Why there is no answer, in words; "" if there is one."""
    return "" if outcome == "answer" else NO_ANSWER.get(outcome, outcome)


def seconds(value: float) -> str:
    """A time as short as it stays readable: 12 ms, 3.4 s, 2 min 5 s."""
    if 0 < value < 0.9995:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if 0 < value < 60 else duration(value)


def brief(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}…"


def _span(trace: Trace) -> float:
    """The time that the lanes show, in seconds; more than 0."""
    return max(max((agent.end for agent in trace.agents), default=0.0), 1e-6)


def _marks(span: float) -> list[float]:
    return [at for at in ticks(0.0, span) if 0 <= at <= span]


def _lanes(trace: Trace) -> Iterator[Lane]:
    critical, openings = set(trace.critical_path), {group[0] for group in trace.groups}
    order = [0, *(place for group in trace.groups for place in group)]
    for place in order:
        agent = trace.agents[place]
        steps = [(f"a{place}s{number}", step) for number, step in enumerate(agent.steps)]
        bars = [*_waits(steps, _span(trace)), *(_bar(*each, _span(trace)) for each in steps if not _is_wait(each[1]))]
        yield Lane(place, agent, place in critical, ended(agent.outcome), bars, steps, place in openings)


def _is_wait(step: Step) -> bool:
    """Whether a call lasts as long as the sub-agent that it waits for."""
    return step.tool == "assign_task" and step.end > step.start


def _waits(steps: Sequence[tuple[str, Step]], span: float) -> Iterator[Bar]:
    """One bar for all calls of a turn that wait for sub-agents; it lies below what runs meanwhile."""
    turns: dict[int, list[tuple[str, Step]]] = {}
    for anchor, step in steps:
        if _is_wait(step):
            turns.setdefault(step.main_step, []).append((anchor, step))
    for calls in turns.values():
        start, end = min(step.start for _, step in calls), max(step.end for _, step in calls)
        title = f"waits {seconds(end - start)} for {len(calls)} sub-agent{'s' * (len(calls) > 1)}"
        yield Bar(100 * start / span, 100 * (end - start) / span, "waiting", title, calls[0][0])


def _bar(anchor: str, step: Step, span: float) -> Bar:
    what = f"{step.tool} {brief(' '.join(step.arguments.values()))}"
    if step.kind == "completion":
        what = f"{step.new_tokens} tokens: {brief(step.text) or '(no text)'}"
    title = f"step {step.critical_step}, {seconds(step.end - step.start)} · {what}"
    css = "completion" if step.kind == "completion" else "tool"
    return Bar(100 * step.start / span, 100 * (step.end - step.start) / span, css, title, anchor)
