from __future__ import annotations

import json
from typing import Any

import pytest

from model.boundary.errors import MoonflowError
from model.swarm.trace import NAME, TEXT, AgentRecorder, Recorder, Trace


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def recorded(*sub_steps: int, text: str = "found") -> Trace:
    """An episode of three turns: it creates an agent, assigns tasks of so many completions each, and answers."""
    clock = Clock()
    recorder = Recorder(clock)
    main = recorder.agent("main", task="each?")

    def say(agent: AgentRecorder, turn: int, critical: int, seconds: float = 1.0) -> None:
        begun = recorder.now()
        clock.at += seconds
        agent.completion(begun, text, main_step=turn, critical_step=critical, prompt_tokens=10, new_tokens=3)

    say(main, 1, 1)
    main.tool_call(
        recorder.now(), "create_subagent", {"name": "finder"}, "finder created", main_step=1, critical_step=1
    )
    say(main, 2, 2)
    begun = clock.at
    for number, steps in enumerate(sub_steps):
        clock.at = begun  # they run at the same time
        agent = recorder.agent("finder", parent=main, main_step=2, system_prompt="Search.", task=f"part {number}")
        for step in range(steps):
            say(agent, 2, 3 + step)
        agent.ended("answer")
        main.tool_call(1.0, "assign_task", {"agent": "finder"}, text, main_step=2, critical_step=2)
    clock.at = begun + max(sub_steps, default=0)
    last = 3 + max(sub_steps, default=0)
    say(main, 3, last)
    main.ended("answer")
    return recorder.trace(
        question="each?", answer=text, outcome="answer", reward=0.5, parts={"parallel": 0.75}, critical_steps=last,
        budget=12, about={"step": "parl"},
    )  # fmt: skip


def test_a_trace_is_read_as_it_was_written() -> None:
    trace = recorded(2, 3)
    assert Trace.from_json(trace.to_json()) == trace
    assert trace.to_json().count("\n") == 1
    assert trace.agents[1].steps[0].start == 2.0 and trace.agents[1].steps[-1].end == 4.0
    assert trace.seconds == 6.0 and [agent.parent for agent in trace.agents] == [None, 0, 0]


def test_the_critical_path_has_the_slowest_agent_of_each_group() -> None:
    trace = recorded(2, 4, 3)
    assert trace.groups == [[1, 2, 3]] and trace.critical_path == [0, 2]
    on_path = {step.critical_step for place in trace.critical_path for step in trace.agents[place].steps}
    assert on_path == set(range(1, trace.critical_steps + 1))
    assert recorded().critical_path == [0] and recorded().groups == []


def test_of_equally_slow_agents_the_one_that_ended_last_is_on_the_critical_path() -> None:
    trace = recorded(2, 2, 1)
    later = trace.agents[2].model_copy(
        update={"steps": [step.model_copy(update={"end": step.end + 5}) for step in trace.agents[2].steps]}
    )
    assert trace.model_copy(update={"agents": [*trace.agents[:2], later, trace.agents[3]]}).critical_path == [0, 2]


def test_totals_are_sums_over_the_agents() -> None:
    trace = recorded(2, 3)
    assert [agent.totals.completions for agent in trace.agents] == [3, 2, 3]
    assert trace.agents[1].totals.seconds == 2.0
    assert (trace.totals.completions, trace.totals.tool_calls) == (8, 3)
    assert (trace.totals.prompt_tokens, trace.totals.new_tokens, trace.totals.seconds) == (80, 24, 6.0)


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "\x00\x1b[2J\u202eexe", "\ud83d", "x" * 100_000, "9" * 5000]
)
def test_any_text_is_kept_in_a_form_that_is_safe_to_show(hostile: str) -> None:
    trace = recorded(1, text=hostile)
    again = Trace.from_json(trace.to_json())
    assert again == trace
    assert all(char.isprintable() or char in "\n\t" for char in again.answer)
    assert len(again.answer) <= TEXT


def test_an_argument_that_is_no_text_is_kept_as_json() -> None:
    recorder = Recorder()
    agent = recorder.agent("a" * 500)
    agent.tool_call(0.0, "search", {"query": ["a", 1]}, "", main_step=1, critical_step=1)
    trace = recorder.trace(question="", budget=1)
    assert trace.agents[0].steps[0].arguments == {"query": '["a", 1]'}
    assert len(trace.agents[0].name) == NAME


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(recorded(1).to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "object"),
        ("{}", "question: Field required"),
        (edited(reward="high"), "reward"),
        (edited(budget=-1), "budget"),
        (edited(colour="red"), "colour"),
        (edited(format="moonflow-swarm-trace/9"), "format"),
        (edited(agents=[]), "agents"),
        (edited(agents=[{"name": "a", "parent": 0}]), "needs a parent before it"),
        (edited(agents=[{"name": "a"}, {"name": "b", "parent": 1}]), "agent 1 needs a parent before it"),
        (edited(seconds=1).replace('"seconds": 1', '"seconds": NaN'), "JSON"),
        ('{"question": "\\ud83d"}', ""),
        ("\x00", "JSON"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=r"^e\.json is no trace of a swarm episode") as raised:
        Trace.from_json(text, "e.json")
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_bytes_that_are_no_text_are_told_too() -> None:
    with pytest.raises(MoonflowError, match="is no trace"):
        Trace.from_json(b"\xff\xfe\x00")


def test_a_step_that_ends_before_it_starts_is_refused() -> None:
    broken = recorded(1).to_json().replace('"start":0.0', '"start":50.0', 1)
    with pytest.raises(MoonflowError, match="ends before it starts"):
        Trace.from_json(broken)


def test_a_trace_is_shortened_to_a_number_of_bytes() -> None:
    trace = recorded(*[3] * 32, text="long " * 3000)
    short = trace.within(60_000)
    assert short is not None and len(short.to_json().encode()) <= 60_000
    assert len(short.agents) == 33 and [a.totals for a in short.agents] == [a.totals for a in trace.agents]
    assert trace.within(10**9) is trace
    assert trace.within(1000) is None
