"""What the agents of a running swarm do, as a terminal shows it (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from model.swarm.critical_steps import CriticalSteps
from model.swarm.trace import Recorder


@dataclass
class AgentState:
    """An agent at work.

    Attributes:
        name: of the agent. task: what it was told.
        state: "waits", "works", "done" or "failed".
        doing: what it waits for now, e.g. the tool that it uses; "" if it does not work.
        steps: completions so far.
        prompt_tokens, new_tokens: tokens read and written so far.
        began, ended: seconds since the question; None before.
        outcome: why it ended, as `model.swarm.turns.Finished.outcome`.
    """

    name: str
    task: str
    state: str = "waits"
    doing: str = ""
    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    began: float | None = None
    ended: float | None = None
    outcome: str = ""


@dataclass
class Board:
    """All agents of a swarm, the orchestrator first.

    Attributes:
        prices: US dollars per million tokens read and written; None if they are not known.
        counted: whether the server counted all tokens.
        changed: told of each agent that begins or ends.
    """

    steps: CriticalSteps
    recorder: Recorder
    prices: tuple[float, float] | None = None
    agents: list[AgentState] = field(default_factory=list)
    counted: bool = True
    changed: Callable[[AgentState], None] = lambda agent: None

    def add(self, name: str, task: str) -> AgentState:
        self.agents.append(AgentState(name, task))
        return self.agents[-1]

    def begin(self, agent: AgentState) -> None:
        agent.state, agent.began = "works", self.recorder.now()
        self.changed(agent)

    def end(self, agent: AgentState, outcome: str) -> None:
        agent.state, agent.doing = "done" if outcome == "answer" else "failed", ""
        agent.outcome, agent.ended = outcome, self.recorder.now()
        self.changed(agent)

    @property
    def prompt_tokens(self) -> int:
        return sum(agent.prompt_tokens for agent in self.agents)

    @property
    def new_tokens(self) -> int:
        return sum(agent.new_tokens for agent in self.agents)

    @property
    def cost(self) -> float | None:
        """US dollars so far; None without prices."""
        return self.cost_of(self)

    def cost_of(self, used: Board | AgentState) -> float | None:
        """US dollars for the tokens of the board or of one agent; None without prices."""
        if self.prices is None:
            return None
        return (used.prompt_tokens * self.prices[0] + used.new_tokens * self.prices[1]) / 1e6
