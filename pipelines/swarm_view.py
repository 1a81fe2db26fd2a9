"""A swarm at work: a live tree of its agents in a terminal, plain lines elsewhere.

The tree is as high as the terminal at most, and goes when the work ends: what is printed then is not below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.constrain import Constrain
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from model.boundary.untrusted_text import shown
from model.swarm.chat.board import AgentState, Board
from pipelines.progress import duration

STYLES = {"waits": "dim", "works": "bold cyan", "done": "green", "failed": "bold red"}
FEWEST_LINES = 4  # of agents, however low the terminal is
MARGIN = 3  # columns: a terminal writes ^C there, which would begin a new line behind a full one and shift the tree
INDENT = 4  # columns by which rich sets a node to the right of the one above it


@asynccontextmanager
async def watched(board: Board, console: Console) -> AsyncIterator[None]:
    """Show the board while the swarm works."""
    if not console.is_terminal:
        board.changed = lambda agent: print(_line(board, agent), flush=True)
        yield
        return

    def render() -> Constrain:
        return Constrain(agent_tree(board, max(FEWEST_LINES, console.size.height - 4)), console.size.width - MARGIN)

    with Live(get_renderable=render, console=console, refresh_per_second=4, transient=True):
        yield


def agent_tree(board: Board, most: int) -> Tree:
    """The agents below their orchestrator: those at work first, at most ``most`` of them, and how many are left out."""
    main, *others = board.agents or [AgentState("orchestrator", "")]
    tree = Tree(Text(_totals(board), style="bold", no_wrap=True, overflow="ellipsis"))
    order = {"works": 0, "waits": 1, "failed": 2, "done": 2}
    newest = sorted(reversed(others), key=lambda agent: order[agent.state])
    first, *rows = _rows([main, *newest[:most]], board)
    top = tree.add(first)
    for row in rows:
        top.add(row)
    if left_out := newest[most:]:
        top.add(Text(f"and {len(left_out)} more", style="dim"))
    return tree


def _rows(agents: Sequence[AgentState], board: Board) -> list[Text]:
    """A line for each agent, the first of which stands INDENT to the left of the others; the terminal's width cuts it.

    Its columns: name, what it does, steps, tokens, cost if there are prices, time, task.
    """
    now = board.recorder.now()
    table = [_cells(agent, board, now) for agent in agents]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    rows = []
    for number, (agent, cells) in enumerate(zip(agents, table, strict=True)):
        row = Text(no_wrap=True, overflow="ellipsis")
        styles = (STYLES[agent.state], "dim")
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            if place < len(styles):
                indented = width + INDENT * (number == place == 0)
                row.append(set_cell_size(cell, indented), style=styles[place])
            else:
                row.append(cell.rjust(width))
            row.append("  " * (width > 0))
        row.append(shown(" ".join(agent.task.split()), 160), style="italic")
        rows.append(row)
    return rows


def _cells(agent: AgentState, board: Board, now: float) -> list[str]:
    told = agent.doing or (agent.outcome if agent.state == "failed" else agent.state)
    cells = [shown(agent.name, 24), shown(told, 24)]
    if not agent.steps:
        return [*cells, "", "", "", ""]
    cost = board.cost_of(agent)
    took = "" if agent.began is None else duration((agent.ended or now) - agent.began)
    tokens = f"{agent.prompt_tokens + agent.new_tokens:,} tokens"
    return [*cells, _count(agent.steps, "step", " "), tokens, "" if cost is None else f"${cost:.4f}", took]


def _line(board: Board, agent: AgentState) -> str:
    """What is printed when an agent begins or ends."""
    name = shown(agent.name, 60)
    if agent.state == "works":
        return f"{name} begins: {shown(' '.join(agent.task.split()), 120)}"
    took = duration((agent.ended or 0.0) - (agent.began or 0.0)) if agent.began is not None else "no time"
    told = "is done" if agent.state == "done" else f"has no answer ({agent.outcome})"
    used = f"{_count(agent.steps, 'step')}, {agent.prompt_tokens + agent.new_tokens:,} tokens, {took}"
    return f"{name} {told}: {used}; critical steps {board.steps.spent} of {board.steps.budget}"


def _totals(board: Board) -> str:
    about = "" if board.counted else "about "
    parts = [
        f"critical steps {board.steps.spent} of {board.steps.budget}",
        _count(len(board.agents), "agent"),
        *([] if board.cost is None else [f"{about}${board.cost:.4f}"]),
        duration(board.recorder.now()),
        f"{about}{board.prompt_tokens:,} tokens read, {about}{board.new_tokens:,} written",
    ]
    return ", ".join(parts)


def _count(number: int, of: str, one: str = "") -> str:
    """``one``: what stands in the place of the plural's s."""
    return f"{number} {of}{one if number == 1 else 's'}"


def summary(board: Board, failures: Counter[str]) -> str:
    """What the answer took, which sub-agents have none, and which tools failed."""
    lines = [_totals(board)]
    helpers = board.agents[1:]
    if lost := Counter(agent.outcome for agent in helpers if agent.state == "failed"):
        why = ", ".join(f"{outcome} {count}" for outcome, count in lost.most_common())
        lines.append(f"{lost.total()} of {_count(len(helpers), 'sub-agent')} without an answer: {why}")
    if failures:
        lines.append("failed tool calls: " + ", ".join(f"{name} {count}" for name, count in failures.most_common()))
    return "\n".join(lines)
