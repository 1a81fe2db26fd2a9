from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from model.boundary.errors import Unavailable
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize_prompt
from model.rl.environment import Episode
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Completion, Request
from model.swarm.baselines import Mode
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode

ITEMS = {"Peru": "Lima", "France": "Paris", "Chad": "Oman"}
SAMPLE = Sample(
    key="w-0", family="wide_search", ability="agentic", modality="text", source="s",
    messages=[{"role": "user", "content": "capital of each: Peru, France, Chad"}],
    tools=["search", "create_subagent", "assign_task"], answer=ITEMS, reward="table_f1",
    environment={"records": {f"{item} capital".lower(): value for item, value in ITEMS.items()}},
)  # fmt: skip
ANSWER = "\n".join(f"{item}: {value}" for item, value in ITEMS.items())
CREATE = ("create_subagent", {"name": "finder", "system_prompt": "Search."})
ASSIGN = [("assign_task", {"agent": "finder", "prompt": f"{item} capital"}) for item in ITEMS]
SEARCH = [("search", {"query": f"{item} capital"}) for item in ITEMS]


@pytest.fixture
def play(tokenizer: Any, toolset: Toolset, scripted: Any) -> Callable[..., Episode]:
    def run(*turns: list[int], sub: Any = None, budget: int = 10, mode: Mode = "swarm", **more: int) -> Episode:
        return asyncio.run(
            run_swarm_episode(
                scripted.saying(*turns),
                sub or scripted(lambda request: [7]),
                tokenizer,
                SAMPLE,
                ImageConfig(),
                toolset,
                limits=SwarmLimits(
                    budget,
                    more.get("sub_steps", 4),
                    max_tokens=more.get("window", 512),
                    sub_agent_tokens=more.get("sub_window"),
                ),
                temperature=1.0,
                seed=1,
                mode=mode,
            )  # fmt: skip
        )

    return run


@pytest.fixture
def searcher(tokenizer: Any, scripted: Any, speak: Any) -> Any:
    """A sub-agent that searches for its task once and repeats the result."""

    def script(request: Request) -> list[int]:
        text = tokenizer.decode(request.input_ids)
        item = next(item for item in ITEMS if f"{item} capital" in text)
        return speak(ITEMS[item]) if "Return of" in text else speak("", [("search", {"query": f"{item} capital"})])

    return scripted(script, seconds=0.01)


def test_a_swarm_works_in_parallel_and_its_words_are_observations(play, speak, searcher, tokenizer) -> None:
    create, assign, answer = speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER)
    episode = play(create, assign, answer, sub=searcher)
    assert episode.reward == 1.0 and episode.finish_reason == "answer"
    assert searcher.most_running == len(ITEMS)
    # create 1 + (assign 1 + slowest sub-agent 2) + answer 1
    metrics = dict(episode.metrics)
    assert 0 < metrics.pop("seconds") < 60
    longest = max(len(request.input_ids) for request in searcher.requests)
    assert metrics.pop("context_tokens") == max(len(episode.input_ids), longest + len(speak("Paris")))
    assert len(episode.input_ids) + 3 * longest < metrics.pop("total_tokens") < len(episode.input_ids) + 4 * longest
    assert metrics == {
        "tool_calls": 4.0, "critical_steps": 5.0, "parallelism": 3.0,
        "subtasks_assigned": 3.0, "subtasks_finished": 3.0, "sub_agents_failed": 0.0,
        "part/precision": 1.0, "part/recall": 1.0,
    }  # fmt: skip
    policy = [token for token, mine in zip(episode.input_ids, episode.policy_mask, strict=True) if mine]
    assert policy == create + assign + answer
    observed = [token for token, mine in zip(episode.input_ids, episode.policy_mask, strict=True) if not mine]
    assert "## Return of functions.assign_task:1\nLima" in tokenizer.decode(observed)


def test_sub_agents_have_a_context_of_their_own(play, speak, searcher, tokenizer) -> None:
    play(speak("", [CREATE]), speak("", ASSIGN[:1], first=1), speak(ANSWER), sub=searcher)
    prompt = tokenizer.decode(searcher.requests[0].input_ids)
    assert "Search." in prompt and "Peru capital" in prompt
    assert "France" not in prompt and "create_subagent" not in prompt


def test_direct_searches_cost_one_step_each(play, speak) -> None:
    together = play(speak("", SEARCH), speak(ANSWER))
    one_by_one = play(*(speak("", [call], first=n) for n, call in enumerate(SEARCH)), speak(ANSWER))
    assert together.metrics["critical_steps"] == one_by_one.metrics["critical_steps"] == 4.0
    assert together.reward == one_by_one.reward == 1.0
    assert together.metrics["parallelism"] == 0.0


def test_the_budget_ends_the_episode_before_it_is_exceeded(play, speak, searcher) -> None:
    serial = [speak("", [call], first=n) for n, call in enumerate(SEARCH)]
    for budget, turns in (
        (3, [*serial, speak(ANSWER)]),
        (2, [speak("", SEARCH), speak(ANSWER)]),
        (4, [speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER)]),
    ):
        episode = play(*turns, sub=searcher, budget=budget)
        assert (episode.finish_reason, episode.reward) == ("budget", 0.0)
        assert episode.metrics["critical_steps"] == budget
    assert play(*serial, speak(ANSWER), budget=4).reward == 1.0


def test_a_sub_agent_is_cut_at_what_the_budget_leaves(play, speak, scripted) -> None:
    restless = scripted(lambda request: speak("", SEARCH[:1]))
    episode = play(speak("", [CREATE]), speak("", ASSIGN[:2], first=1), speak(ANSWER), sub=restless, budget=5)
    assert len(restless.requests) == 2 * 3
    assert episode.finish_reason == "budget"
    assert (episode.metrics["subtasks_assigned"], episode.metrics["subtasks_finished"]) == (2.0, 0.0)


def test_unfinished_and_unknown_agents_are_told(play, speak, scripted, tokenizer) -> None:
    restless = scripted(lambda request: speak("", SEARCH[:1]))
    orders = [ASSIGN[0], ("assign_task", {"agent": "nobody", "prompt": "x"})]
    episode = play(speak("", [CREATE]), speak("", orders, first=1), speak(ANSWER), sub=restless)
    text = tokenizer.decode(episode.input_ids)
    assert "error: no answer (turns)" in text and "error: no agent nobody" in text
    assert episode.metrics["subtasks_assigned"] == 1.0


def test_a_single_agent_has_search_alone(play, speak, searcher, tokenizer) -> None:
    episode = play(speak("", [CREATE]), speak("", SEARCH, first=1), speak(ANSWER), sub=searcher, mode="single")
    text = tokenizer.decode(episode.input_ids)
    assert "assign_task" not in text and "error: no tool create_subagent" in text
    assert episode.reward == 1.0 and searcher.requests == []


def rewritten(turn: list[int], arguments: list[int], tokenizer: Tokenizer) -> list[int]:
    """A turn with one call, whose arguments are other tokens."""
    begin = turn.index(tokenizer.token_id("<|tool_call_argument_begin|>")) + 1
    return [*turn[:begin], *arguments, *turn[turn.index(tokenizer.token_id("<|tool_call_end|>")) :]]


@pytest.mark.parametrize("text", ["\ud83d", "\udc00\x00", "९" * 9], ids=["high", "low", "digits"])
def test_any_name_and_prompt_of_a_sub_agent_is_encoded(text, play, tokenizer, speak, scripted) -> None:
    """The JSON escape of half a character, as a policy may write it, is read as U+FFFD."""

    def escaped(tool: str, first: int = 0, **arguments: str) -> list[int]:
        return rewritten(speak("", [(tool, {})], first=first), tokenizer.encode(json.dumps(arguments)), tokenizer)

    create = escaped("create_subagent", name=text, system_prompt=text)
    assign = escaped("assign_task", first=1, agent=text, prompt=text)
    episode = play(create, assign, speak(ANSWER), sub=scripted(lambda request: speak("found")))
    assert episode.reward == 1.0 and episode.metrics["subtasks_finished"] == 1.0 and not episode.failure


def test_an_agent_whose_context_an_observation_fills_takes_no_further_step(play, speak, tokenizer) -> None:
    turn = speak("", SEARCH[:1])
    prompt = tokenize_prompt(replace(SAMPLE, tools=["search"]), tokenizer, ImageConfig())
    episode = play(turn, mode="single", window=len(prompt.input_ids) + len(turn) + 1)
    assert episode.finish_reason == "context" and episode.metrics["critical_steps"] == 1


def test_a_sub_agent_that_breaks_is_a_counted_observation_and_no_failure_of_the_episode(
    play, speak, scripted, searcher, tokenizer
) -> None:
    """One of three: the others are not cancelled."""

    class Fragile:
        async def generate(self, requests):
            if "France capital" in tokenizer.decode(requests[0].input_ids):
                raise TypeError("the reply is no completion")
            return await searcher.generate(requests)

    episode = play(speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER), sub=Fragile())
    text = tokenizer.decode(episode.input_ids)
    assert "## Return of functions.assign_task:2\nerror: no answer (failed)" in text
    assert "assign_task:1\nLima" in text and "assign_task:3\nOman" in text
    assert (episode.finish_reason, episode.reward) == ("answer", 1.0)
    assert (episode.metrics["subtasks_assigned"], episode.metrics["subtasks_finished"]) == (3.0, 2.0)
    assert episode.metrics["sub_agents_failed"] == 1.0 and not episode.failure
    assert episode.lost == "sub-agent of wide_search/w-0: TypeError: the reply is no completion"


def test_where_the_sub_agents_engine_is_gone_the_episode_cannot_go_on(play, speak) -> None:
    class Gone:
        async def generate(self, requests):
            raise Unavailable("SGLang is unreachable")

    with pytest.raises(Unavailable, match="unreachable"):
        play(speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER), sub=Gone())


def test_a_task_too_long_for_a_sub_agent_is_told_and_fails_nothing(play, speak, searcher, tokenizer) -> None:
    """Bytes that are no character are three tokens each when they are read again. A policy that writes such tasks must
    not use up the share of episodes that may fail."""
    byte = next(token for token in range(tokenizer.ranks) if tokenizer.token_bytes(token) == b"\x80")

    def noisy(name: str, known: str, noise: str, first: int = 0) -> list[int]:
        head, tail = tokenizer.encode(f'{{{known}, "{noise}": "'), tokenizer.encode('"}')
        return rewritten(speak("", [(name, {})], first=first), [*head, *[byte] * 90, *tail], tokenizer)

    create = noisy("create_subagent", '"name": "finder"', "system_prompt")
    assign = noisy("assign_task", '"agent": "finder"', "prompt", first=1)
    episode = play(create, assign, speak(ANSWER), sub=searcher)
    assert "error: the task is too long" in tokenizer.decode(episode.input_ids)
    assert episode.reward == 1.0 and not episode.failure and searcher.requests == []
    assert episode.metrics["subtasks_assigned"] == 0.0


@pytest.mark.parametrize(
    ("searches", "steps"), [((4, 4, 4, 4), 5), ((19, 0, 0, 0), 20)], ids=["four of five", "twenty beside ones"]
)
def test_a_group_costs_its_slowest_sub_agent_and_one_step_of_the_orchestrator(
    searches, steps, play, speak, scripted, tokenizer
) -> None:
    """A sub-agent that searches n times takes n + 1 steps. Creating it and the answer are two steps more."""

    def script(request: Request) -> list[int]:
        text = tokenizer.decode(request.input_ids)
        wanted = next(count for n, count in enumerate(searches) if f"task {n}!" in text)
        done = text.count("Return of")
        return speak("found") if done == wanted else speak("", SEARCH[:1], first=done)

    assign = [("assign_task", {"agent": "finder", "prompt": f"task {n}!"}) for n in range(4)]
    episode = play(
        speak("", [CREATE]), speak("", assign, first=1), speak(ANSWER), sub=scripted(script), budget=40, sub_steps=30,
        window=4096,
    )  # fmt: skip
    assert episode.metrics["critical_steps"] == 1 + (steps + 1) + 1
    assert episode.metrics["subtasks_finished"] == 4.0


def test_a_sub_agent_that_breaks_half_way_costs_the_steps_that_it_took(play, speak, searcher, tokenizer) -> None:
    """The others take two steps each; it breaks at its fourth completion."""

    class Fragile:
        async def generate(self, requests):
            text = tokenizer.decode(requests[0].input_ids)
            if "France capital" not in text:
                return await searcher.generate(requests)
            if (done := text.count("Return of")) == 3:
                raise TypeError("broken")
            return [Completion(ids := speak("", SEARCH[:1], first=done), [0.0] * len(ids), "stop")]

    episode = play(speak("", [CREATE]), speak("", ASSIGN, first=1), speak(ANSWER), sub=Fragile())
    assert episode.lost and episode.metrics["subtasks_finished"] == 2.0
    assert episode.metrics["critical_steps"] == 1 + (1 + 4) + 1
    trace, broken = episode.trace, episode.trace.agents[2]
    assert (broken.completions, broken.turns) == (3, 4)
    assert trace.critical_path == [0, 2] and (trace.critical_steps, trace.unrecorded) == (7, 1)


def test_the_windows_of_orchestrator_and_sub_agents_differ(play, speak, scripted) -> None:
    restless = scripted(lambda request: speak("", SEARCH[:1]))
    episode = play(speak("", [CREATE]), speak("", ASSIGN[:1], first=1), speak(ANSWER), sub=restless, sub_window=80)
    assert max(len(request.input_ids) + request.max_new_tokens for request in restless.requests) <= 80
    assert len(episode.input_ids) > 80 and episode.metrics["subtasks_finished"] == 0.0
