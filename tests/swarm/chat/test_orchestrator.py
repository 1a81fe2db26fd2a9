from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from model.boundary.errors import MoonflowError, Transient, Unavailable
from model.swarm.chat.endpoint import ChatEndpoint
from model.swarm.chat.orchestrator import ChatLimits, ChatSwarm
from model.swarm.chat.tools import Tool, Toolbox, ToolError
from model.swarm.trace import Trace
from model.swarm.turns import Finished
from tests.chat_server import MODEL, Script, chatting, is_sub_agent, results, say, task_of, turns, use
from tests.http_server import nobody

CREATE = ("create_subagent", {"name": "finder", "system_prompt": "Search."})
PLACES = ("peru", "chad", "laos", "fiji")
ASSIGN = [("assign_task", {"agent": "finder", "prompt": place}) for place in PLACES]
SWARM = (use(CREATE), use(*ASSIGN, first=1), say("found"))


def tool(name: str = "search", run: Callable[[dict[str, Any]], Any] = lambda arguments: "Lima") -> Tool:
    async def called(arguments: dict[str, Any]) -> str:
        return run(arguments)  # type: ignore[no-any-return]

    return Tool(name, "look up", {"type": "object", "properties": {"query": {"type": "string"}}}, called)


def ask(
    script: Script, toolbox: Toolbox | None = None, limits: ChatLimits | None = None, retries: int = 2
) -> tuple[Finished, ChatSwarm]:
    async def asked(url: str) -> tuple[Finished, ChatSwarm]:
        async with ChatEndpoint(url, MODEL, retries=retries) as endpoint:
            swarm = ChatSwarm(endpoint, toolbox or Toolbox([tool()]), limits or ChatLimits())
            return await swarm.ask("capitals?"), swarm

    with chatting(script) as url:
        return asyncio.run(asked(url))


def test_assignments_of_a_turn_overlap_and_only_the_final_messages_come_back() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if is_sub_agent(body):
            return say(task_of(body).upper()) if results(body) else use(("search", {"query": task_of(body)}))
        return main(body)

    main = turns(*SWARM)
    script = Script(answer, seconds=0.1)
    done, swarm = ask(script)
    assert (done.outcome, done.answer) == ("answer", "found")
    assert script.most == len(PLACES)
    orchestrator = [body for body in script.requests if not is_sub_agent(body)]
    assert results(orchestrator[-1]) == ["finder created", *(place.upper() for place in PLACES)]
    # create 1 + (assign 1 + slowest sub-agent 2) + answer 1
    assert swarm.figures == {
        "critical_steps": 5.0, "parallelism": 4.0, "subtasks_assigned": 4.0, "subtasks_finished": 4.0,
        "sub_agents_failed": 0.0,
    }  # fmt: skip
    sub_agent = next(body for body in script.requests if is_sub_agent(body))
    assert [message["role"] for message in sub_agent["messages"]] == ["system", "user"]
    assert sub_agent["messages"][0]["content"] == "Search."


def test_the_trace_has_every_agent_with_its_steps() -> None:
    _, swarm = ask(Script(turns(*SWARM), seconds=0.02))
    trace = Trace.from_json(swarm.trace.to_json())
    assert (trace.question, trace.answer, trace.outcome, trace.critical_steps) == ("capitals?", "found", "answer", 4)
    main, *subs = trace.agents
    assert [(agent.name, agent.task, agent.outcome) for agent in subs] == [("finder", p, "answer") for p in PLACES]
    assert [step.critical_step for step in main.steps if step.kind == "completion"] == [1, 2, 4]
    assert {step.critical_step for agent in subs for step in agent.steps} == {3}
    assert trace.totals.prompt_tokens == 700 and trace.totals.new_tokens == 70


def test_no_more_sub_agents_than_allowed_work_at_once() -> None:
    script = Script(turns(*SWARM), seconds=0.05)
    done, swarm = ask(script, limits=ChatLimits(parallel=2))
    assert done.answer == "found" and script.most == 2
    assert swarm.figures["parallelism"] == 4


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("search", "{not json"), "error: search: the arguments cannot be read: "),
        (("search", "[1]"), "error: search: the arguments cannot be read: arguments must be a JSON object"),
        (("fly", {}), "error: no tool fly"),
        (("assign_task", {"agent": "nobody", "prompt": "x"}), "error: no agent nobody"),
        (("create_subagent", {"name": "a"}), "error: create_subagent takes name, system_prompt"),
        (("assign_task", {"agent": "a", "prompt": 3}), "error: assign_task takes agent, prompt"),
    ],
)
def test_a_call_that_cannot_run_is_told_to_the_model(call: tuple[str, Any], told: str) -> None:
    script = Script(turns(use(call), say("sorry")))
    done, _ = ask(script)
    assert done.answer == "sorry" and results(script.requests[-1])[0].startswith(told)
    repeated = script.requests[-1]["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(repeated) == ({} if isinstance(call[1], str) else call[1])


def test_a_hostile_result_is_bounded_and_named() -> None:
    def hostile(arguments: dict[str, Any]) -> Any:
        if arguments["query"] == "raise":
            raise RuntimeError("no\nluck")
        return {"huge": "x" * 5_000_000, "half": "\ud83d", "number": 7}[arguments["query"]]

    calls = [("search", {"query": query}) for query in ("raise", "huge", "half", "number")]
    script = Script(turns(use(*calls), say("ok")))
    toolbox = Toolbox([tool(run=hostile)])
    done, _ = ask(script, toolbox)
    raised, huge, half, number = results(script.requests[-1])
    assert raised == "error: search: it raised RuntimeError: no luck"
    assert huge.endswith("[cut: the tool returned 5,000,000 characters]") and len(huge) < 40_000
    assert half == "\ufffd" and number.startswith("error: search: it raised TypeError")
    assert done.answer == "ok" and toolbox.failures == {"search": 2}


def test_a_tool_that_hangs_is_left_behind() -> None:
    async def hangs(arguments: dict[str, Any]) -> str:
        await asyncio.sleep(60)
        return ""

    slow = Tool("search", "look up", {"type": "object"}, hangs)
    script = Script(turns(use(("search", {})), say("ok")))
    done, _ = ask(script, Toolbox([slow], timeout_s=0.1))
    assert results(script.requests[-1]) == ["error: search: it gave no answer in 0.1 s"] and done.answer == "ok"


def test_sub_agents_that_fail_never_end_or_are_too_long_are_told_as_errors() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if not is_sub_agent(body):
            return main(body)
        place = task_of(body)
        if place == "peru":
            return use(("search", {"query": "again"}), first=len(results(body)))
        if place == "chad":
            return (400, {"error": {"message": "I refuse"}})
        return say("half a", finish_reason="length") if place == "laos" else say(" ")

    long = ("assign_task", {"agent": "finder", "prompt": "x" * 30_000})
    main = turns(use(CREATE), use(*ASSIGN, long, first=1), say("found"))
    script = Script(answer)
    done, swarm = ask(script, limits=ChatLimits(sub_agent_steps=3, max_tokens=8000))
    assert results(script.requests[-1])[1:] == [
        "error: no answer (turns)", "error: no answer (failed)", "error: no answer (length)",
        "error: no answer (empty)", "error: the task is too long",
    ]  # fmt: skip
    assert done.answer == "found" and "I refuse" in swarm.trace.failure
    assert swarm.figures["critical_steps"] == 1 + (1 + 3) + 1


def test_a_completion_that_breaks_is_a_step_too() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if not is_sub_agent(body):
            return main(body)
        done = len(results(body))
        return use(("search", {"query": "again"}), first=done) if done < 2 else (400, {"error": {"message": "no"}})

    main = turns(use(CREATE), use(ASSIGN[0], first=1), say("found"))
    _, swarm = ask(Script(answer))
    assert swarm.figures["critical_steps"] == 1 + (1 + 3) + 1


def test_a_context_that_fills_up_ends_its_agent() -> None:
    script = Script(lambda body: use(("search", {"query": "more"}), first=len(results(body))), usage=False)
    done, swarm = ask(script, Toolbox([tool(run=lambda arguments: "x" * 1500)]), ChatLimits(max_tokens=2000))
    assert done.outcome == "context" and 1 < len(script.requests) < 5
    assert swarm.figures["critical_steps"] == len(script.requests)
    assert all(1 <= body["max_tokens"] <= 500 for body in script.requests)


def test_a_spent_budget_ends_without_an_answer() -> None:
    script = Script(lambda body: use(("search", {"query": "more"}), first=len(results(body))))
    done, swarm = ask(script, limits=ChatLimits(critical_steps=3))
    assert done.outcome == "budget" and swarm.trace.outcome == "budget"
    assert len(script.requests) == 3 and swarm.figures["critical_steps"] == 3


def test_an_overloaded_server_is_asked_again() -> None:
    busy = (429, {"error": {"message": "slow down"}}, {"retry-after-ms": "20"})
    script = Script(turns(busy, (503, {"detail": "busy"}, {"retry-after-ms": "20"}), say("found")))
    done, _ = ask(script)
    assert done.answer == "found" and len(script.requests) == 3


def test_a_server_that_stays_overloaded_is_named() -> None:
    busy = (429, {"error": {"message": "slow down"}}, {"retry-after-ms": "10"})
    with pytest.raises(MoonflowError, match=r"answered HTTP 429: slow down$"):
        ask(Script(lambda body: busy))


def test_thinking_comes_back_to_the_model_that_thought() -> None:
    script = Script(turns(use(("search", {"query": "x"}), reasoning_content="hm"), say("found")))
    _, swarm = ask(script)
    assert script.requests[-1]["messages"][2]["reasoning_content"] == "hm"
    assert swarm.trace.agents[0].steps[0].text == "hm"


def test_calls_without_ids_or_with_equal_ones_each_get_their_result() -> None:
    calls = use(("search", {"query": "a"}), ("search", {"query": "b"}))
    for call in calls["tool_calls"]:
        call["id"] = "same"
    script = Script(turns(calls, say("found")))
    ask(script, Toolbox([tool(run=lambda arguments: arguments["query"])]))
    told = [m for m in script.requests[-1]["messages"] if m["role"] == "tool"]
    assert [message["content"] for message in told] == ["a", "b"]
    asked = [call["id"] for call in script.requests[-1]["messages"][2]["tool_calls"]]
    assert len(set(asked)) == 2 and asked == [message["tool_call_id"] for message in told]


def test_tokens_are_estimated_where_the_server_counts_none() -> None:
    _, swarm = ask(Script(turns(say("found")), usage=False))
    assert not swarm.board.counted and swarm.board.prompt_tokens > 100 and swarm.board.new_tokens > 0


@pytest.mark.parametrize(
    "answer",
    [(200, b"<html>"), (200, {"choices": []}), (200, {"choices": [{"message": {"content": 3}}]}), (200, b"[]")],
)
def test_an_answer_that_is_none_is_one_line(answer: Any) -> None:
    with pytest.raises(MoonflowError, match="answered with no chat completion") as told:
        ask(Script(lambda body: answer))
    assert len(str(told.value).splitlines()) == 1


def test_a_server_without_tool_calling_is_named() -> None:
    refusal = (400, {"message": '"auto" tool choice requires --enable-auto-tool-choice'})
    with pytest.raises(MoonflowError, match="takes no tools .*--tool-call-parser"):
        ask(Script(lambda body: refusal))


def test_a_server_that_dies_under_a_sub_agent_ends_the_question() -> None:
    def answer(body: dict[str, Any]) -> Any:
        return (401, {"error": {"message": "who?"}}) if is_sub_agent(body) else main(body)

    main = turns(*SWARM)
    with pytest.raises(Unavailable, match="refuses the key"):
        ask(Script(answer))


def test_a_server_that_hangs_holds_an_agent_for_one_deadline_whatever_the_tries() -> None:
    """It is busy, then it hangs: under one of two sub-agents, of which the orchestrator is told, then under that."""
    ended, tries = threading.Event(), Counter[str]()

    def answer(body: dict[str, Any]) -> Any:
        if (is_sub_agent(body) and task_of(body) == "peru") or results(body)[-1:] == ["CHAD"]:
            tries[task_of(body)] += 1
            if tries[task_of(body)] == 1:
                return 503, {"detail": "busy"}
            ended.wait(60)
            return say("late")
        return main(body)

    main, swarms = turns(use(CREATE), use(*ASSIGN[:2], first=1)), []

    async def asked(url: str) -> None:
        async with ChatEndpoint(url, MODEL, timeout_s=1.5, when_late="raise --x") as endpoint:
            swarms.append(ChatSwarm(endpoint, Toolbox([tool()]), ChatLimits()))
            with pytest.raises(MoonflowError, match=rf"{url}/v1 gave no answer within 1.5 s: .*; raise --x"):
                await swarms[0].ask("capitals?")

    with chatting(Script(answer)) as url:
        asyncio.run(asked(url))
        ended.set()
    assert tries == {"peru": 2, "capitals?": 2} and swarms[0].figures["sub_agents_failed"] == 1.0
    agents = {agent.task: agent for agent in swarms[0].trace.agents}
    assert "gave no answer within 1.5 s" in agents["peru"].failure and agents["chad"].outcome == "answer"


def test_a_dead_endpoint_is_one_line() -> None:
    async def asked(url: str) -> None:
        async with ChatEndpoint(url, MODEL, retries=0) as endpoint:
            await endpoint.complete([{"role": "user", "content": "x"}], [], 8)

    with nobody() as url, pytest.raises(Transient, match=r"cannot be reached .*is it running\?"):
        asyncio.run(asked(url))


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"data": [{"id": "kimi2"}]}, "has no model kimi; it has kimi2; did you mean kimi2"),
        (401, "refuses the key"),
    ],
)
def test_the_models_are_looked_at_first(models: Any, told: str) -> None:
    async def asked(url: str) -> None:
        async with ChatEndpoint(url, MODEL) as endpoint:
            await endpoint.context()

    with chatting(Script(turns(), models=models)) as url, pytest.raises(MoonflowError, match=told):
        asyncio.run(asked(url))


@pytest.mark.parametrize(
    ("models", "context"),
    [({"data": [{"id": MODEL, "max_model_len": 4096}]}, 4096), ({"data": [{"id": MODEL}]}, None), (404, None)],
)
def test_a_server_may_tell_how_much_it_holds(models: Any, context: int | None) -> None:
    async def asked(url: str) -> int | None:
        async with ChatEndpoint(url, MODEL) as endpoint:
            return await endpoint.context()

    with chatting(Script(turns(), models=models)) as url:
        assert asyncio.run(asked(url)) == context


@pytest.mark.parametrize("url", ["nowhere", "http://", "http://secret@host", "ftp://host/v1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(MoonflowError) as told:
        ChatEndpoint(url, MODEL)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:1", "http://host:1/v1"),
        ("http://host:1/v1/", "http://host:1/v1"),
        ("https://host/api/paas/v4", "https://host/api/paas/v4"),
    ],
)
def test_v1_is_added_to_a_url_without_a_path(url: str, base: str) -> None:
    assert ChatEndpoint(url, MODEL).url == base


def test_names_that_are_taken_get_a_number() -> None:
    toolbox = Toolbox([tool("search"), tool("search"), tool("a.b/c"), tool("assign_task")])
    names = [each["function"]["name"] for each in toolbox.declarations(swarm=False)]
    assert names == ["search", "search_2", "a_b_c", "assign_task_2"]
    assert [each["function"]["name"] for each in toolbox.declarations(swarm=True)][-2:] == [
        "create_subagent", "assign_task",
    ]  # fmt: skip


def test_an_error_that_a_tool_describes_is_told_as_it_is() -> None:
    def refuses(arguments: dict[str, Any]) -> str:
        raise ToolError("the archive is closed")

    script = Script(turns(use(("search", {})), say("ok")))
    ask(script, Toolbox([tool(run=refuses)]))
    assert results(script.requests[-1]) == ["error: search: the archive is closed"]
