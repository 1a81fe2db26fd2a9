from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.serve.stage import serving
from model.swarm.chat.board import Board
from model.swarm.critical_steps import CriticalSteps
from model.swarm.trace import Recorder, Trace
from pipelines.cli import main
from pipelines.swarm_view import agent_tree, summary, watched
from tests.chat_server import Script, chatting, is_sub_agent, results, say, turns, use
from tests.http_server import nobody
from tests.pipelines.commands import PROGRAM, ROOT
from tests.scripted import write_scripted
from tests.waiting import happens

MCP_PROGRAM = ROOT / "tests" / "swarm" / "chat" / "mcp_program.py"
CREATE = ("create_subagent", {"name": "finder", "system_prompt": "Search."})
ASSIGN = [("assign_task", {"agent": "finder", "prompt": place}) for place in ("peru", "chad")]
KEY = "sk-very-secret"


@pytest.fixture
def moonflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The command in this process, in an empty folder: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(url: str, *arguments: str, question: str = "capitals?") -> tuple[Any, str, str]:
        command = ["moonflow", "swarm", "ask", question, "--endpoint", url, "--model", "kimi", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    yield run


def test_an_answer_its_figures_and_its_trace(moonflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ask_tools.py").write_text('def search(query: str) -> str:\n    """Look up."""\n    return query * 2\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "other")
    script = Script(
        turns(use(CREATE, ("search", {"query": "ab"})), use(*ASSIGN, first=2), say(f"found \x1b[2J with {KEY}"))
    )
    with chatting(script) as url:
        status, out, err = moonflow(
            url, "--tool", "ask_tools:search", "--api-key-env", "SERVER_KEY", "--price-in", "2", "--price-out", "10",
            "--json",
        )  # fmt: skip
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "orchestrator begins: capitals?" and "finder begins: peru" in lines
    assert any(line.startswith("finder is done: 1 step, 110 tokens, ") for line in lines)
    found = json.loads(lines[-1])
    assert found["outcome"] == "answer" and "\x1b" not in "".join(lines[:-1])
    assert (found["critical_steps"], found["parallelism"], found["agents"]) == (1 + 2 + 1, 2, 3)
    assert found["prompt_tokens"] == 500 and found["new_tokens"] == 50 and found["cost"] == pytest.approx(0.0015)
    assert set(script.keys) == {f"Bearer {KEY}"} and script.organizations == []
    assert results(script.requests[1])[1] == "abab"
    (saved,) = (tmp_path / "runs" / "swarm").iterdir()
    assert found["trace"] == str(saved.relative_to(tmp_path)) and KEY not in saved.read_text()
    assert [agent.name for agent in Trace.from_json(saved.read_text()).agents] == ["orchestrator", "finder", "finder"]


def test_no_answer_is_status_1_and_says_what_to_do(moonflow: Any, tmp_path: Path) -> None:
    script = Script(lambda body: use(("fly", {}), first=len(results(body))))
    with chatting(script) as url:
        status, out, err = moonflow(url, "--critical-steps", "2", "--trace", "t.json")
    assert status == 1 and err.startswith("moonflow: no answer: the budget") and "2 of 2" in out
    assert Trace.from_json((tmp_path / "t.json").read_text()).outcome == "budget"


def test_what_cannot_be_asked_is_one_line(moonflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    cases = [
        ((), "cannot be reached"),
        (("--api-key-env", "NO_KEY"), "NO_KEY is not set"),
        (("--tool", "nowhere:search"), "there is no module nowhere"),
        (("--tool", "a:b", "--tool", "a:b"), "--tool a:b is given twice"),
        (("--price-in", "3"), "--price-in and --price-out together"),
        (("--trace", "."), "is a folder"),
    ]
    with nobody() as url:
        for arguments, told in cases:
            status, out, err = moonflow(url, *arguments)
            assert (status, out) == (2, "") and told in err and len(err.splitlines()) == 1, arguments
        assert "is empty" in moonflow(url, question=" ")[2]
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_a_server_repeats_is_not_shown(moonflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    refusal = (400, {"error": {"message": f"I know {KEY}"}})
    with chatting(Script(lambda body: refusal)) as url:
        status, out, err = moonflow(url, "--api-key-env", "SERVER_KEY", "--trace", "t.json")
    assert status == 2 and "I know <key>" in err and KEY not in out + err + Path("t.json").read_text()
    assert "the trace so far is t.json" in err


@pytest.mark.parametrize("key", ["token", "text", "completion"])
def test_a_key_that_is_a_field_of_the_trace_leaves_it_readable(
    key: str, moonflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", key)
    with chatting(Script(lambda body: say(f"the key is {key}"))) as url:
        assert moonflow(url, "--api-key-env", "SERVER_KEY", "--trace", "t.json")[0] == 0
    assert Trace.from_json(Path("t.json").read_text()).answer == "the key is <key>"


def test_a_signal_ends_all_agents_at_once_and_keeps_the_trace(moonflow: Any) -> None:
    hanging = threading.Barrier(2, action=lambda: os.kill(os.getpid(), signal.SIGINT))

    def answer(body: dict[str, Any]) -> Any:
        if is_sub_agent(body):
            hanging.wait(30)
            time.sleep(0.5)  # longer than it takes to stop
            return say("late")
        return opening(body)

    opening = turns(use(CREATE), use(*ASSIGN, first=1))
    with chatting(Script(answer)) as url:
        status, out, err = moonflow(url, "--trace", "t.json")
    assert (status, err) == (130, "moonflow: stopped; the trace so far is t.json\n")
    assert out.count("has no answer (stopped)") == 3
    trace = Trace.from_json(Path("t.json").read_text())
    assert [agent.outcome for agent in trace.agents] == ["stopped"] * 3 and trace.agents[0].completions == 2


@pytest.mark.slow
def test_ctrl_c_ends_agents_and_servers_and_keeps_the_trace(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Any:
        if is_sub_agent(body):
            return use(("capital", {"country": "far"}))  # hangs
        return opening(body)

    opening, script = turns(use(CREATE), use(*ASSIGN, first=1)), Script(answer)
    mcp = shlex.join([sys.executable, str(MCP_PROGRAM), str(tmp_path / "pid")])
    with chatting(script) as url:
        command = [*PROGRAM, "swarm", "ask", "far?", "--endpoint", url, "--model", "kimi", "--mcp", mcp, "--json"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert happens(lambda: sum(map(is_sub_agent, script.requests)) == 2, 120), process.communicate(timeout=5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    found = json.loads(out.splitlines()[-1])
    trace = Trace.from_json((tmp_path / found["trace"]).read_text())
    assert found["outcome"] == trace.outcome == "stopped"
    assert [agent.outcome for agent in trace.agents] == ["stopped"] * 3
    assert err.splitlines() == [f"moonflow: stopped; the trace so far is {found['trace']}"]
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists(), "its MCP server has ended"


@pytest.mark.slow
def test_our_own_server_speaks_for_a_swarm(moonflow: Any, tmp_path: Path) -> None:
    """Of a tiny model that says the same whatever it is asked."""
    thought, end = ("<think>", "hm", "</think>"), ("<|tool_calls_section_end|>", "<|im_end|>")
    said = (*thought, "Let me look", "<|im_end|>")
    opening = (*thought, "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.search:0")
    call = (*opening, "<|tool_call_argument_begin|>", '{"query": "lima"}', "<|tool_call_end|>", *end)
    outcomes = {}
    for name, script in (("says", said), ("calls", call)):
        with serving(write_scripted(tmp_path / name, script, context=1024), "kimi", 240) as url:
            _, out, err = moonflow(url, "--critical-steps", "2", "--max-tokens", "900", "--trace", "t.json", "--json")
        found = json.loads(out.splitlines()[-1])
        assert found["tokens_counted"] and found["prompt_tokens"] > 0, err
        outcomes[name] = (found["outcome"], found["answer"], found["critical_steps"])
    assert outcomes == {"says": ("answer", "Let me look", 1), "calls": ("budget", "", 2)}
    main = Trace.from_json(Path("t.json").read_text()).agents[0]
    assert [step.result for step in main.steps if step.tool] == ["error: no tool search"] * 2


def at_work() -> Board:
    """A board with an orchestrator and five sub-agents, of which two have ended."""
    board = Board(CriticalSteps(10), Recorder(), prices=(1.0, 2.0))
    for number in range(6):
        agent = board.add("boss" if not number else f"agent {number}", "task \x1b[2J [b]" * 30)
        board.begin(agent)
        agent.steps, agent.prompt_tokens = number, 10**number
        if number in (1, 2):
            board.end(agent, "answer" if number == 1 else "budget")
    return board


def test_the_tree_shows_agents_at_work_first_and_says_how_many_are_left_out() -> None:
    board, console = at_work(), Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(agent_tree(board, 4))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text and "[b]" in text and all(len(line) <= 80 for line in text.splitlines())
    assert "critical steps 0 of 10, 6 agents, $0.1111, " in text
    rows = [line for line in text.splitlines() if " tokens  $" in line]
    assert (
        len(rows) == 4 and len({row.index("$") for row in rows}) == 1 and "  1,000 tokens  $0.0010  0.0 s  task" in text
    )
    assert "1 of 5 sub-agents without an answer: budget 1" in summary(board, Counter())
    shown = [line.split()[2] for line in text.splitlines() if " agent " in line]
    assert shown == ["5", "4", "3", "2"] and "and 1 more" in text


def test_the_tree_leaves_nothing_in_the_terminal_and_room_for_what_it_echoes() -> None:
    console = Console(file=io.StringIO(), width=60, height=12, force_terminal=True)

    async def work() -> None:
        async with watched(at_work(), console):
            pass

    asyncio.run(work())
    told = console.file.getvalue()  # type: ignore[attr-defined]
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told).replace("\r", "\n").splitlines()
    assert any("agent 5" in line for line in frames) and max(map(len, frames)) <= 60 - len("^C")
    height = 1 + 1 + 5  # the figures, the orchestrator, its agents
    *_, after = told.rpartition("agent 1")
    assert after.count("\x1b[1A\x1b[2K") >= height - 1 and "\x1b[?25h" in after, (
        "all lines are erased, the cursor is back"
    )
