"""Commands about agent swarms: ask, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def ask(
    question: Annotated[str, typer.Argument(help="What the swarm is asked.")],
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible server, for example http://127.0.0.1:8000/v1.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="The server's name for its model.")],
    api_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds the server's key.")
    ] = "",
    tool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="A Python function with types and a docstring, which all agents may call. PYTHONPATH names the folder "
            "of its module. May be repeated.",
        ),
    ] = None,
    mcp: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COMMAND|URL",
            help="An MCP server, over stdio or streamable HTTP, whose tools all agents may call. May be repeated.",
        ),
    ] = None,
    critical_steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Budget: steps on the critical path of the whole swarm.")
    ] = 100,
    sub_agent_steps: Annotated[int, typer.Option(min=1, max=100_000, help="Turns of one sub-agent.")] = 50,
    max_tokens: Annotated[
        int, typer.Option(min=64, max=16_777_216, help="Tokens of one agent's context; at most the server's.")
    ] = 131_072,
    parallel: Annotated[int, typer.Option(min=1, max=1000, help="Most sub-agents at work at once.")] = 16,
    request_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86_400,
            help="Seconds that one turn of an agent may take on the server, all tries together: raise it for a slow "
            "model.",
        ),
    ] = 600,
    tool_timeout: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds that one tool call may take.")] = 60,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="US dollars per million tokens read; with --price-out, costs are shown.")
    ] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="US dollars per million tokens written.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="The file that records the run. Default: a new one in runs/swarm.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object too, the last line.")
    ] = False,
) -> None:
    """Ask an agent swarm: any OpenAI-compatible model that can call tools is its orchestrator and its sub-agents.

    The model creates sub-agents and assigns tasks to them; tasks of one turn are worked on at the same time. Steps are
    counted and limited as in training. A terminal shows all agents at work; moonflow swarm show renders the trace.
    A tool that fails, hangs or returns too much, and a sub-agent that breaks, is told to the model as an error.
    The status is 1 if there is no answer. Ctrl-C ends everything at once and keeps the trace.
    """
    from model.swarm.chat.orchestrator import ChatLimits
    from pipelines.swarm_ask import Question, ask_swarm

    asked = Question(
        question,
        endpoint,
        model,
        api_key_env,
        tuple(tool or ()),
        tuple(mcp or ()),
        ChatLimits(critical_steps, sub_agent_steps, max_tokens, parallel),
        request_timeout,
        tool_timeout,
        price_in,
        price_out,
    )
    if not ask_swarm(asked, trace, as_json=as_json):
        raise typer.Exit(1)


def show(
    trace: Annotated[Path, typer.Argument(help="A trace's JSON file, or the folder of a run, for example runs/tiny.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page to write, or for a run the folder. Default: next to FILE, or RUN/swarm.",
        ),
    ] = None,
) -> None:
    """Write the HTML page of a swarm episode and print who worked when.

    The steps parl and evaluate of a run keep the traces of a few episodes in MLflow; of a run's folder, all of them
    are fetched. Nothing is opened.
    """
    from pipelines.swarm_traces import show as render

    render(trace, output, Console())
