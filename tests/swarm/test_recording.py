from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from model.boundary.errors import Unavailable
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.rl.environment import derive_seed, run_episode
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Request
from model.swarm.orchestrator import SECONDS, SwarmEpisode, SwarmLimits, run_swarm_episode
from model.swarm.recording import expected_of, said
from model.swarm.trace import Recorder, Recording, Trace
from tests.swarm.test_orchestrator import ANSWER, ASSIGN, CREATE, ITEMS, SAMPLE, SEARCH, rewritten

LIMITS = SwarmLimits(critical_steps=10, sub_agent_steps=4)


def play(engine: Any, sub: Any, tokenizer: Tokenizer, toolset: Toolset, **changes: Any) -> SwarmEpisode:
    settings = {"limits": LIMITS, "temperature": 1.0, "seed": 1} | changes
    return asyncio.run(run_swarm_episode(engine, sub, tokenizer, SAMPLE, ImageConfig(), toolset, **settings))


def traced(*played: Any, **changes: Any) -> Trace:
    trace = play(*played, **changes).trace
    assert trace is not None and Trace.from_json(trace.to_json()) == trace
    return trace


def searching(tokenizer: Tokenizer, speak: Callable[..., list[int]]) -> Callable[[Request], list[int]]:
    """A sub-agent that searches for its task once, that of Chad twice, and answers."""

    def script(request: Request) -> list[int]:
        text = tokenizer.decode(request.input_ids)
        item = next(item for item in ITEMS if f"{item} capital" in text)
        done = text.count("Return of")
        if done < (2 if item == "Chad" else 1):
            return speak("", [("search", {"query": f"{item} capital"})], first=done)
        return speak(ITEMS[item])

    return script


def test_a_trace_tells_who_did_what_when_and_in_which_step(tokenizer, speak, scripted, toolset) -> None:
    turns = [speak("I make one.", [CREATE]), speak("", [*ASSIGN, SEARCH[0]], first=1), speak(ANSWER)]
    trace = traced(
        scripted.saying(*turns), scripted(searching(tokenizer, speak), seconds=0.01), tokenizer, toolset
    )  # fmt: skip
    assert (trace.outcome, trace.reward, trace.critical_steps, trace.budget) == ("answer", 1.0, 6, 10)
    assert (trace.question, trace.answer) == ("capital of each: Peru, France, Chad", ANSWER)
    assert trace.expected == ANSWER and trace.about == {"task": "wide_search/w-0"}
    assert trace.parts == {"parallel": 0.75, "finish": 1.0}
    main, *subs = trace.agents
    assert [step.tool or step.text for step in main.steps if step.main_step == 1] == ["I make one.", "create_subagent"]
    assert [(a.name, a.parent, a.main_step, a.system_prompt, a.task, a.outcome) for a in subs] == [
        ("finder", 0, 2, "Search.", f"{item} capital", "answer") for item in ITEMS
    ]
    assert [step.text for step in main.steps if step.kind == "completion"] == ["I make one.", "", ANSWER]
    told = {step.arguments["prompt"]: step.result for step in main.steps if step.tool == "assign_task"}
    assert told == {f"{item} capital": value for item, value in ITEMS.items()}
    # The turn of the group is step 2, its direct search too; the slowest sub-agent takes 3 to 5; the answer is 6.
    assert [step.critical_step for step in main.steps if step.kind == "completion"] == [1, 2, 6]
    assert [step.critical_step for step in subs[2].steps] == [3, 3, 4, 4, 5]
    assert trace.critical_path == [0, 3]
    assert [step.new_tokens for step in main.steps if step.kind == "completion"] == [len(turn) for turn in turns]


def test_the_lanes_of_a_group_overlap_and_an_assignment_lasts_as_long_as_its_agent(
    tokenizer, speak, scripted, toolset
) -> None:
    turns = [speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER)]
    trace = traced(scripted.saying(*turns), scripted(searching(tokenizer, speak), seconds=0.05), tokenizer, toolset)
    main, *subs = trace.agents
    assert max(agent.start for agent in subs) < min(agent.end for agent in subs)
    calls = [step for step in main.steps if step.tool == "assign_task"]
    for call, agent in zip(sorted(calls, key=lambda call: call.end), sorted(subs, key=lambda a: a.end), strict=True):
        assert call.start <= agent.start and agent.end <= call.end
    assert calls[-1].end - calls[0].end > -0.05 and subs[2].totals.seconds > subs[0].totals.seconds
    assert main.steps[-1].start >= max(agent.end for agent in subs)
    assert trace.seconds >= main.end


def test_recording_changes_nothing_that_is_sampled(tokenizer, speak, scripted, toolset) -> None:
    """A single agent is compared with an episode that nobody records."""
    turns = [speak("", SEARCH[:1]), speak("", SEARCH[1:], first=1), speak(ANSWER)]
    recorded, plain = scripted.saying(*turns), scripted.saying(*turns)
    episode = play(recorded, None, tokenizer, toolset, mode="single")
    limits = {"max_new_tokens": LIMITS.max_new_tokens, "max_tokens": LIMITS.max_tokens}
    task = replace(SAMPLE, tools=["search"])
    unrecorded = asyncio.run(
        run_episode(plain, tokenizer, task, ImageConfig(), toolset, max_turns=11, temperature=1.0, seed=1, **limits)
    )
    assert recorded.requests == plain.requests
    own = {"trace", "metrics"}
    assert {k: v for k, v in vars(episode).items() if k not in own} == {
        k: v for k, v in vars(unrecorded).items() if k not in own
    }


def test_each_assignment_has_the_seed_of_its_place_and_a_repeated_episode_is_equal(
    tokenizer, speak, scripted, toolset
) -> None:
    def again() -> tuple[SwarmEpisode, Any]:
        sub = scripted(searching(tokenizer, speak))
        engine = scripted.saying(speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER))
        return play(engine, sub, tokenizer, toolset), sub

    (one, first), (other, second) = again(), again()
    assert one.metrics.pop(SECONDS) > 0 and other.metrics.pop(SECONDS) > 0
    assert one == other and first.requests == second.requests
    opening = {request.seed for request in first.requests[:3]}
    assert opening == {derive_seed(derive_seed(1, 1, number, 1), 0) for number in range(3)}
    assert pickle.loads(pickle.dumps(one)).trace == one.trace  # as ranks tell each other of episodes


def test_what_broke_never_ended_or_was_too_long_is_in_the_trace(tokenizer, speak, scripted, toolset) -> None:
    searcher = scripted(searching(tokenizer, speak))

    class Hurt:
        async def generate(self, requests: list[Request]) -> Any:
            text = tokenizer.decode(requests[0].input_ids)
            if "France capital" in text:
                raise TypeError("the reply is no completion")
            if "Peru capital" in text:
                return await scripted(lambda request: speak("", SEARCH[:1])).generate(requests)
            return await searcher.generate(requests)

    nobody = ("assign_task", {"agent": "nobody", "prompt": "x"})
    turns = [speak("", [CREATE]), speak("", [*ASSIGN, nobody], first=1), speak(ANSWER)]
    trace = traced(scripted.saying(*turns), Hurt(), tokenizer, toolset)
    assert [agent.outcome for agent in trace.agents] == ["answer", "turns", "failed", "answer"]
    assert [agent.completions for agent in trace.agents] == [3, 4, 0, 3] and trace.critical_path == [0, 1]
    assert [agent.turns for agent in trace.agents] == [3, 4, 1, 3] and trace.unrecorded == 0
    assert "the reply is no completion" in trace.agents[2].failure and trace.agents[2].failure in trace.failure
    results = [step.result for step in trace.agents[0].steps if step.tool == "assign_task"]
    assert sorted(results) == [
        "Oman",
        "error: no agent nobody",
        "error: no answer (failed)",
        "error: no answer (turns)",
    ]


def test_a_task_that_is_too_long_is_an_agent_without_steps(tokenizer, speak, scripted, toolset) -> None:
    """Bytes that are no character are three tokens each when they are read again."""
    byte = next(token for token in range(tokenizer.ranks) if tokenizer.token_bytes(token) == b"\x80")
    written = [*tokenizer.encode('{"agent": "finder", "prompt": "'), *[byte] * 260, *tokenizer.encode('"}')]
    assign = rewritten(speak("", [("assign_task", {})], first=1), written, tokenizer)
    limits = replace(LIMITS, max_new_tokens=300, max_tokens=750)
    trace = traced(scripted.saying(speak("", [CREATE]), assign, speak(ANSWER)), None, tokenizer, toolset, limits=limits)
    assert [(agent.outcome, agent.completions) for agent in trace.agents] == [("answer", 3), ("context", 0)]
    assert trace.agents[1].task == "\ufffd" * 260 and trace.critical_steps == 3
    assert [step.result for step in trace.agents[0].steps if step.tool == "assign_task"] == [
        "error: the task is too long"
    ]


def test_an_orchestrator_that_breaks_or_has_no_room_leaves_a_trace(tokenizer, speak, scripted, toolset) -> None:
    class Broken:
        async def generate(self, requests: list[Request]) -> Any:
            raise TypeError("no answer\nof any kind")

    episode = play(Broken(), None, tokenizer, toolset)
    assert episode.finish_reason == "failed" and episode.input_ids == []
    assert episode.trace is not None and episode.trace.outcome == "failed"
    assert "no answer of any kind" in episode.trace.failure == episode.trace.agents[0].failure
    small = play(scripted.saying(speak(ANSWER)), None, tokenizer, toolset, limits=replace(LIMITS, max_tokens=5))
    assert small.finish_reason == "failed" and small.trace is not None and "no room" in small.trace.failure


def test_what_all_episodes_need_still_ends_the_step(tokenizer, toolset) -> None:
    class Gone:
        async def generate(self, requests: list[Request]) -> Any:
            raise Unavailable("SGLang is unreachable")

    with pytest.raises(Unavailable, match="unreachable"):
        play(Gone(), None, tokenizer, toolset)


def test_a_spent_budget_and_a_single_agent_are_traced(tokenizer, speak, scripted, toolset) -> None:
    turns = [speak("", SEARCH[:2]), speak("", SEARCH[2:], first=2), speak(ANSWER)]
    budget = replace(LIMITS, critical_steps=3)
    trace = traced(scripted.saying(*turns), None, tokenizer, toolset, mode="single", limits=budget)
    assert (trace.outcome, trace.critical_steps, trace.answer) == ("budget", 3, "")
    assert [(agent.name, agent.outcome) for agent in trace.agents] == [("agent", "budget")]
    searched = [step.critical_step for step in trace.agents[0].steps if step.kind == "tool"]
    assert searched == [1, 2, 3]


def test_a_turn_that_cannot_be_read_is_shown_whole(tokenizer, speak) -> None:
    middle, end = tokenizer.token_id("<|im_middle|>"), tokenizer.im_end_id
    assert said([middle, end], tokenizer) == "<|im_middle|><|im_end|>"
    assert said(speak("Lima", SEARCH[:1]), tokenizer) == "Lima"
    assert "tokenizer" in said([tokenizer.vocab_size], tokenizer) and said([], tokenizer) == ""


def test_right_answers_of_any_form_are_text() -> None:
    assert expected_of({"Peru": "Lima"}) == "Peru: Lima"
    assert expected_of({"columns": ["name", "capital"], "rows": [["Peru", "Lima"], ["Chad", 2]]}) == "Peru|Lima\nChad|2"
    assert expected_of(["a", 2]) == "a\n2"
    assert (expected_of("x"), expected_of(3), expected_of(None)) == ("x", "3", "")
    assert Recording(Recorder().agent("a")).critical_step == 1
