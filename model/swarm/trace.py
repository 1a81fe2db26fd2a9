"""The trace of a swarm episode: who said and called what, when, and in which critical step (source: ours; critical
steps are those of the K2.5 paper, PARL).

A trace is plain text and numbers, so that a page, a terminal or another program can read it. It knows no tokenizer: an
orchestrator over token ids and one over a chat endpoint record the same. ``Recorder`` writes it while an episode runs.

Every conversation is an agent of its own: the orchestrator is the first, and each assignment that it makes adds one,
also if the same named sub-agent is assigned several tasks. Agents with the same parent and main step are a group: they
run at the same time, and the slowest of them is on the critical path.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import cut
from model.codec.chat import ToolCall

TEXT, NAME = 20_000, 120  # characters that are kept of a text and of a name; the middle of a longer one is left out
SHORTEST = 160  # characters that ``Trace.within`` leaves of every text


def _at_most(most: int) -> AfterValidator:
    left_out = len(" … ")
    return AfterValidator(lambda text: cut(text, most - left_out if len(text) > most else most))


Text = Annotated[str, _at_most(TEXT)]
Name = Annotated[str, _at_most(NAME)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Step(_Record):
    """One completion or one tool call.

    Attributes:
        kind: "completion" or "tool".
        start, end: seconds since the episode began.
        main_step: number, from 1, of the orchestrator's turn that it belongs to.
        critical_step: number, from 1, of the critical step in which it begins.
        prompt_tokens, new_tokens: of a completion: tokens that it read, tokens that it sampled.
        text: of a completion: what it says, its thinking included.
        tool, arguments, result: of a tool call. An argument that is no text is kept as JSON.
    """

    kind: Literal["completion", "tool"]
    start: Seconds
    end: Seconds
    main_step: Count
    critical_step: Count
    prompt_tokens: Count = 0
    new_tokens: Count = 0
    text: Text = ""
    tool: Name = ""
    arguments: dict[Name, Text] = Field(default_factory=dict)
    result: Text = ""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end < self.start:
            raise ValueError("a step ends before it starts")
        return self


class Agent(_Record):
    """One conversation: of the orchestrator, or of a sub-agent with one assignment.

    Attributes:
        name: of the agent; several assignments of one sub-agent have the same.
        parent: place, in ``Trace.agents``, of the agent that assigned the task; None of the orchestrator.
        main_step: the orchestrator's turn that assigned the task; 0 of the orchestrator.
        task: what it was told to do.
        outcome: why it ended, as ``Episode.finish_reason``, e.g. "answer"; "" if nothing is known.
        failure: one line that says what broke; "" if nothing did.
        asked: of a sub-agent: turns that it was asked for, one that broke included; 0 if nothing is known.
    """

    name: Name
    parent: Count | None = None
    main_step: Count = 0
    system_prompt: Text = ""
    task: Text = ""
    outcome: Name = ""
    failure: Text = ""
    asked: Count = 0
    steps: list[Step] = Field(default_factory=list)

    @property
    def completions(self) -> int:
        return sum(step.kind == "completion" for step in self.steps)

    @property
    def turns(self) -> int:
        """How many steps count for the critical path: its completions, and a turn that broke, which left none."""
        return max(self.asked, self.completions)

    @property
    def start(self) -> float:
        return min((step.start for step in self.steps), default=0.0)

    @property
    def end(self) -> float:
        return max((step.end for step in self.steps), default=0.0)

    @property
    def totals(self) -> Totals:
        return Totals(
            completions=self.completions,
            tool_calls=len(self.steps) - self.completions,
            prompt_tokens=sum(step.prompt_tokens for step in self.steps),
            new_tokens=sum(step.new_tokens for step in self.steps),
            seconds=self.end - self.start,
        )


@dataclass(frozen=True)
class Totals:
    """What an agent, or all agents together, did; ``seconds`` from the first step's start to the last one's end."""

    completions: int
    tool_calls: int
    prompt_tokens: int
    new_tokens: int
    seconds: float


class Trace(_Record):
    """One episode.

    Attributes:
        about: what it is part of, for a page's title and header: e.g. {"step": "parl", "round": "3"}.
        question: what was asked. answer: what the orchestrator answered, "" if it did not. expected: the right answer.
        outcome: why the episode ended, as ``Episode.finish_reason``.
        failure: one line that says what broke, in the episode or in a sub-agent; "" if nothing did.
        reward: of the answer; None if nothing scored it.
        parts: what else is trained on, before its weight, e.g. {"parallel": 0.75}.
        critical_steps: how many were taken, of ``budget``.
        seconds: wall-clock time of the episode.
        agents: the orchestrator first; a parent comes before its sub-agents.
    """

    format: Literal["moonflow-swarm-trace/1"] = "moonflow-swarm-trace/1"
    about: dict[Name, Name] = Field(default_factory=dict)
    question: Text
    answer: Text = ""
    expected: Text = ""
    outcome: Name = ""
    failure: Text = ""
    reward: Figure | None = None
    parts: dict[Name, Figure] = Field(default_factory=dict)
    critical_steps: Count = 0
    budget: Count
    seconds: Seconds = 0.0
    agents: list[Agent] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_tree(self) -> Self:
        for place, agent in enumerate(self.agents):
            if (agent.parent is None) != (place == 0) or (agent.parent is not None and agent.parent >= place):
                raise ValueError(f"agent {place} needs a parent before it; only the first agent has none")
        return self

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "the trace") -> Trace:
        """What `to_json` wrote.

        Raises:
            MoonflowError: it is no such file; names ``name`` and the first thing that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(cut(str(part), NAME) for part in first["loc"])
            told = f"{where}: {first['msg']}" if where else first["msg"]
            raise MoonflowError(f"{name} is no trace of a swarm episode ({told}); give a JSON file of one") from None

    def to_json(self) -> str:
        """One JSON object in one line."""
        return self.model_dump_json() + "\n"

    @property
    def groups(self) -> list[list[int]]:
        """The places of the agents that ran at the same time, in the order of their main steps."""
        found: dict[tuple[int, int], list[int]] = {}
        for place, agent in enumerate(self.agents):
            if agent.parent is not None:
                found.setdefault((agent.main_step, agent.parent), []).append(place)
        return [found[key] for key in sorted(found)]

    @property
    def critical_path(self) -> list[int]:
        """The places of the orchestrator and of the slowest agent of each group.

        The slowest one took the most turns; if several took as many, it is the one that ended last.
        """

        def slowness(place: int) -> tuple[int, float]:
            return self.agents[place].turns, self.agents[place].end

        return [0, *(max(group, key=slowness) for group in self.groups)]

    @property
    def unrecorded(self) -> int:
        """How many of the critical steps left nothing on the critical path: a turn that broke, or what was left of a
        budget that could not hold the next turn."""
        on_path = {step.critical_step for place in self.critical_path for step in self.agents[place].steps}
        return max(0, self.critical_steps - len(on_path))

    @property
    def totals(self) -> Totals:
        """Of all agents; ``seconds`` is the wall-clock time of the episode."""
        each = [agent.totals for agent in self.agents]
        return Totals(
            completions=sum(one.completions for one in each),
            tool_calls=sum(one.tool_calls for one in each),
            prompt_tokens=sum(one.prompt_tokens for one in each),
            new_tokens=sum(one.new_tokens for one in each),
            seconds=self.seconds,
        )

    def within(self, most: int) -> Trace | None:
        """This trace with texts so short that its JSON has at most ``most`` bytes; None if they cannot be."""
        limit, found = TEXT, self
        while len(found.to_json().encode()) > most:
            if limit <= SHORTEST:
                return None
            limit = max(SHORTEST, limit // 2)
            found = Trace.model_validate_json(json.dumps(_shortened(self.model_dump(), limit)))
        return found


def _shortened(value: Any, most: int) -> Any:
    """A JSON value with every text in it cut."""
    if isinstance(value, str):
        return cut(value, most)
    if isinstance(value, dict):
        return {key: _shortened(item, most) for key, item in value.items()}
    return [_shortened(item, most) for item in value] if isinstance(value, list) else value


@dataclass
class AgentRecorder:
    """Writes the steps of one agent; made by `Recorder.agent`."""

    now: Callable[[], float]
    place: int
    about: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    outcome: str = ""
    failure: str = ""
    asked: int = 0

    def completion(
        self, start: float, text: str, *, main_step: int, critical_step: int, prompt_tokens: int, new_tokens: int
    ) -> None:
        """Add a completion that began at ``start`` (`Recorder.now`) and ends now."""
        self._add(
            "completion", start, main_step, critical_step,
            text=text, prompt_tokens=prompt_tokens, new_tokens=new_tokens,
        )  # fmt: skip

    def tool_call(
        self,
        start: float,
        tool: str,
        arguments: Mapping[str, Any],
        result: str,
        *,
        main_step: int,
        critical_step: int,
    ) -> None:
        """Add a tool call that began at ``start`` (`Recorder.now`) and ends now."""
        texts = {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in arguments.items()}
        self._add("tool", start, main_step, critical_step, tool=tool, arguments=texts, result=result)

    def ended(self, outcome: str, failure: str = "", asked: int = 0) -> None:
        """Say why the agent ended, and for how many turns it was asked."""
        self.outcome, self.failure, self.asked = outcome, failure, asked

    def _add(self, kind: Literal["completion", "tool"], start: float, main: int, critical: int, **said: Any) -> None:
        end = max(start, self.now())
        self.steps.append(Step(kind=kind, start=start, end=end, main_step=main, critical_step=critical, **said))


@dataclass
class Recording:
    """An agent's recorder, and where the agent stands: its next completion belongs to these steps."""

    agent: AgentRecorder
    main_step: int = 1
    critical_step: int = 1

    def completion(self, start: float, text: str, prompt_tokens: int, new_tokens: int) -> None:
        """Add a completion that began at ``start`` and ends now."""
        self.agent.completion(
            start, text, main_step=self.main_step, critical_step=self.critical_step,
            prompt_tokens=prompt_tokens, new_tokens=new_tokens,
        )  # fmt: skip

    def tool_call(self, start: float, call: ToolCall, result: str, later: int = 0) -> None:
        """Add a call of the newest completion; it began ``later`` critical steps after that completion."""
        self.agent.tool_call(
            start, call.name, call.arguments, result, main_step=self.main_step, critical_step=self.critical_step + later
        )


class Recorder:
    """Records an episode while it runs. The agents of a group may record at the same time.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._agents: list[AgentRecorder] = []

    def now(self) -> float:
        """Seconds since the episode began."""
        return self._clock() - self._began

    def agent(
        self,
        name: str,
        *,
        parent: AgentRecorder | None = None,
        main_step: int = 0,
        system_prompt: str = "",
        task: str = "",
    ) -> AgentRecorder:
        """Add an agent; the first one is the orchestrator, which has no parent."""
        about = {
            "name": name,
            "parent": None if parent is None else parent.place,
            "main_step": main_step,
            "system_prompt": system_prompt,
            "task": task,
        }
        self._agents.append(AgentRecorder(self.now, len(self._agents), about))
        return self._agents[-1]

    def trace(self, **episode: Any) -> Trace:
        """What is recorded so far, as a trace.

        Args:
            episode: the fields of `Trace` but for ``agents`` and ``seconds``.
        """
        agents = [
            Agent(
                **agent.about,
                outcome=agent.outcome,
                failure=agent.failure,
                asked=agent.asked,
                steps=sorted(agent.steps, key=lambda step: step.start),
            )
            for agent in self._agents
        ]
        return Trace(**episode, seconds=self.now(), agents=agents)
