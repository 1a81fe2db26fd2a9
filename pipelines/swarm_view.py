"""A swarm at work: a live tree of its agents in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from model.boundary.untrusted_text import shown
from model.swarm.chat.board import AgentState, Board
from pipelines.progress import duration

STYLES = {"waits": "dim", "works": "bold cyan", "done": "green", "failed": "bold red"}
FEWEST_LINES = 4  # of agents, however low the terminal is


@asynccontextmanager
async def watched(board: Board, console: Console) -> AsyncIterator[None]:
    """Show the board while the swarm works."""
    if not console.is_terminal:
        board.changed = lambda agent: print(_line(board, agent), flush=True)
        yield
        return

    def render() -> Tree:
        return agent_tree(board, max(FEWEST_LINES, console.size.height - 4))

    with Live(get_renderable=render, console=console, refresh_per_second=4):
        yield


def agent_tree(board: Board, most: int) -> Tree:
    """The agents below their orchestrator: those at work first, at most ``most`` of them, and how many are left out."""
    main, *others = board.agents or [AgentState("orchestrator", "")]
    now = board.recorder.now()
    tree = Tree(Text(_totals(board), style="bold"))
    top = tree.add(_row(main, now))
    order = {"works": 0, "waits": 1, "failed": 2, "done": 2}
    newest = sorted(reversed(others), key=lambda agent: order[agent.state])
    for agent in newest[:most]:
        top.add(_row(agent, now))
    if left_out := newest[most:]:
        top.add(Text(f"and {len(left_out)} more", style="dim"))
    return tree


def _row(agent: AgentState, now: float) -> Text:
    """One line, which the terminal's width cuts."""
    took = "" if agent.began is None else duration((agent.ended or now) - agent.began)
    told = agent.doing or (agent.outcome if agent.state == "failed" else agent.state)
    row = Text(no_wrap=True, overflow="ellipsis")
    row.append(shown(agent.name, 24), style=STYLES[agent.state])
    row.append(f"  {told}", style="dim")
    if agent.steps:
        row.append(f"  {agent.steps} steps, {agent.prompt_tokens + agent.new_tokens:,} tokens, {took}")
    row.append(f"  {shown(' '.join(agent.task.split()), 160)}", style="italic")
    return row


def _line(board: Board, agent: AgentState) -> str:
    """What is printed when an agent begins or ends."""
    name = shown(agent.name, 60)
    if agent.state == "works":
        return f"{name} begins: {shown(' '.join(agent.task.split()), 120)}"
    took = duration((agent.ended or 0.0) - (agent.began or 0.0)) if agent.began is not None else "no time"
    told = "is done" if agent.state == "done" else f"has no answer ({agent.outcome})"
    used = f"{agent.steps} steps, {agent.prompt_tokens + agent.new_tokens:,} tokens, {took}"
    return f"{name} {told}: {used}; critical steps {board.steps.spent} of {board.steps.budget}"


def _totals(board: Board) -> str:
    about = "" if board.counted else "about "
    parts = [
        f"critical steps {board.steps.spent} of {board.steps.budget}",
        f"{len(board.agents)} agents",
        f"{about}{board.prompt_tokens:,} tokens read, {about}{board.new_tokens:,} written",
        duration(board.recorder.now()),
    ]
    if board.cost is not None:
        parts.insert(3, f"{about}${board.cost:.4f}")
    return ", ".join(parts)


def summary(board: Board, failures: Counter[str]) -> str:
    """What the answer took, and which tools failed."""
    lines = [_totals(board)]
    if failures:
        lines.append("failed tool calls: " + ", ".join(f"{name} {count}" for name, count in failures.most_common()))
    return "\n".join(lines)
