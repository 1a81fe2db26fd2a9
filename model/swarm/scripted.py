"""Scripted agents as engines: they look things up as the world's reference trajectories do, without a mistake (ours).

An orchestrator that knows the true parts of a task (``knows_parts``), over the sub-agents of a real engine, is the
oracle split: it shows what these sub-agents could do if the orchestrator divided the work without a mistake. Scripted
agents on both sides show what the world, the window and the budget allow at best.

An agent knows no more than its context shows: what was hidden or dropped it has lost. How far it is, it reads off the
number of tool results in its context.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.codec.chat import encode_turns
from model.codec.tokenizer import Tokenizer
from model.data.families.world.agents import Conversation, Part, Plan
from model.data.families.world.index import View
from model.rollout.protocol import Completion, Request
from model.swarm.baselines import NEARLY_FULL

Calls = Sequence[dict[str, Any]]
NAME, SYSTEM_PROMPT = "finder", "Use the tools, then answer in one line."
UNKNOWN = "unknown"
RESULT = "## Return of"
_ASSIGNED = re.compile(r"## Return of functions\.assign_task:\d+\n(.*?)<\|im_end\|>", re.DOTALL)
_ASKED = re.compile(r"<\|im_user\|>user<\|im_middle\|>(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One call of a scripted agent, and what the tool shows."""

    calls: Calls
    shown: str


@dataclass(frozen=True)
class WorkedPart:
    """A part of a task, the steps of the agent that does it, and the line it comes to."""

    prompt: str
    steps: list[Step]
    line: str


class Worked:
    """A task as the scripted agents solve it: the steps before its parts, and each part."""

    def __init__(self, plan: Plan, view: View) -> None:
        talk = Conversation(view)
        parts = plan.begin(talk)
        self.conclude, self.begin = plan.conclude, _steps(talk)
        self.parts = [_worked(part, view) for part in parts]

    def answer(self, lines: Sequence[str]) -> str:
        """The answer from the lines that are known, which may be some of them."""
        return self.conclude(list(lines)) if lines else UNKNOWN


def _worked(part: Part, view: View) -> WorkedPart:
    talk = Conversation(view)
    line = part.work(talk)
    return WorkedPart(part.prompt, _steps(talk), line)


def _steps(talk: Conversation) -> list[Step]:
    pairs = zip(talk.turns[::2], talk.turns[1::2], strict=True)  # each turn has one call
    return [Step(asked["tool_calls"], told["content"]) for asked, told in pairs]


class _Scripted:
    """An engine that answers each request with one turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._opening = len(encode_turns([], tokenizer, 0))

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._completion(request) for request in requests]

    async def update_weights(self, checkpoint: Path) -> None:
        """A script has no weights."""

    def _completion(self, request: Request) -> Completion:
        content, calls, done = self.turn(request, self.tokenizer.decode(request.input_ids))
        ids = self.spoken(content, calls, done)
        kept = ids[: request.max_new_tokens]
        return Completion(kept, [0.0] * len(kept), "stop" if len(kept) == len(ids) else "length")

    def spoken(self, content: str, calls: Calls, done: int) -> list[int]:
        """The tokens of a turn after ``done`` calls."""
        turn = {"role": "assistant", "content": content, "tool_calls": list(calls)}
        return encode_turns([turn], self.tokenizer, done)[self._opening : -self._opening]

    def turn(self, request: Request, text: str) -> tuple[str, Calls, int]:
        """What it says to a context: content, calls, and how many calls there were before."""
        raise NotImplementedError


class ScriptedSingle(_Scripted):
    """One agent that does all parts, one after the other, in one context.

    It answers with the lines that it has when the budget has one step left, or when its window is used up.

    Args:
        budget, window: critical steps and tokens of the episode.
        managed: whether the context is shortened when it is nearly full: then it goes on.
        notes: whether it writes down each line in the turn after it, as an agent must whose tool results are hidden.
    """

    def __init__(
        self, worked: Worked, tokenizer: Tokenizer, budget: int, window: int, managed: bool = False, notes: bool = False
    ) -> None:
        super().__init__(tokenizer)
        self._worked, self._budget, self._window, self._managed = worked, budget, window, managed
        self._notes, self._asked = notes, 0
        self._steps = [*worked.begin, *(step for part in worked.parts for step in part.steps)]
        end, self._ends = len(worked.begin), list[int]()
        for part in worked.parts:
            self._ends.append(end := end + len(part.steps))

    def turn(self, request: Request, text: str) -> tuple[str, Calls, int]:
        self._asked += 1
        done = text.count(RESULT)
        lines = [part.line for part, end in zip(self._worked.parts, self._ends, strict=True) if end <= done]
        if done == len(self._steps) or self._asked >= self._budget or not self._goes_on(request, done, lines):
            return self._worked.answer(lines), (), done
        note = lines[-1] if self._notes and done in self._ends else ""
        return note, self._steps[done].calls, done

    def _goes_on(self, request: Request, done: int, lines: Sequence[str]) -> bool:
        """Whether the next call, its result and an answer after it have room, or the context is going to be shorter."""
        if self._managed and len(request.input_ids) < NEARLY_FULL * self._window:
            return True
        step = self._steps[done]
        later = [*lines, *(part.line for part, end in zip(self._worked.parts, self._ends, strict=True) if end > done)]
        result = {"role": "tool", "name": step.calls[0]["name"], "content": step.shown}
        seen = len(self.spoken("", step.calls, done)) + len(encode_turns([result], self.tokenizer, done))
        answer = len(self.spoken("\n".join(later[: len(lines) + 1]), (), done))
        return len(request.input_ids) + seen + answer <= self._window


class ScriptedOrchestrator(_Scripted):
    """An orchestrator that gives each part to a sub-agent, all at once, and makes the answer of their lines.

    Args:
        knows_parts: whether it is told the parts; otherwise it looks them up first, where the question does not say
            them.
    """

    def __init__(self, worked: Worked, tokenizer: Tokenizer, knows_parts: bool = False) -> None:
        super().__init__(tokenizer)
        self._worked, self._begin = worked, [] if knows_parts else worked.begin

    def turn(self, request: Request, text: str) -> tuple[str, Calls, int]:
        done, first = text.count(RESULT), len(self._begin)
        if done < first:
            return "", self._begin[done].calls, done
        if done == first:
            return "", [_call("create_subagent", name=NAME, system_prompt=SYSTEM_PROMPT)], done
        if done == first + 1:
            return "", [_call("assign_task", agent=NAME, prompt=part.prompt) for part in self._worked.parts], done
        found = [line for line in _ASSIGNED.findall(text) if not line.startswith("error:")]
        return self._merged(found), (), done

    def _merged(self, lines: list[str]) -> str:
        try:
            return self._worked.answer(lines)
        except (ValueError, IndexError):  # a sub-agent of a real engine may answer anything
            return "\n".join(lines)


class ScriptedSubAgents(_Scripted):
    """The sub-agents of a task, each of which does the part that its prompt asks for."""

    def __init__(self, worked: Worked, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._parts = {part.prompt: part for part in worked.parts}

    def turn(self, request: Request, text: str) -> tuple[str, Calls, int]:
        asked, done = _ASKED.search(text), text.count(RESULT)
        part = self._parts.get(asked[1]) if asked else None
        if part is None:
            return UNKNOWN, (), done
        return ("", part.steps[done].calls, done) if done < len(part.steps) else (part.line, (), done)


def _call(tool: str, **arguments: str) -> dict[str, Any]:
    return {"name": tool, "arguments": arguments}
