"""Commands about agent swarms: ask, video, show."""

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


def video(
    files: Annotated[list[Path], typer.Argument(help="Video files: MP4, MOV, WebM, Matroska, AVI, MPEG, FLV, Ogg.")],
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible server, for example http://127.0.0.1:8000/v1.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The server's name for its model. Default: the only one it serves.")
    ] = "",
    api_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds the server's key.")
    ] = "",
    question: Annotated[str, typer.Option(help="What the swarm looks for.")] = "What happens in the videos?",
    part_seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds of one part, which one sub-agent watches.")
    ] = 60,
    frames: Annotated[int, typer.Option(min=1, max=128, help="Most frames of a part that its sub-agent sees.")] = 8,
    frame_size: Annotated[int, typer.Option(min=28, max=2048, help="Most pixels of a frame's longer side.")] = 448,
    at_once: Annotated[int, typer.Option(min=1, max=1000, help="Most parts that are watched at once.")] = 8,
    request_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86_400,
            help="Seconds that one answer may take on the server, all tries together: raise it for a slow model.",
        ),
    ] = 600,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Then watch all parts again, one at a time, to measure the speed-up. It takes the tokens twice.",
        ),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=16, max=262_144, help="Tokens of one answer; at most a quarter of the server's context.")
    ] = 2_048,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="US dollars per million tokens read; with --price-out, costs are shown.")
    ] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="US dollars per million tokens written.")] = None,
    out: Annotated[Path | None, typer.Option(help="The report. Default: a new one in runs/swarm.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="The file that records the run. Default: a new one in runs/swarm.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object too, the last line.")
    ] = False,
) -> None:
    """Watch videos with an agent swarm: a sub-agent for each part, all at the same time, and one HTML report.

    Each file is split by time. A sub-agent sees frames of its part, those at changes of scene first, and names events
    and key frames; one more turn of the model divides the files into chapters and answers the question. The report has
    a timeline, key frames, charts, and what each part took; moonflow swarm show renders the trace.
    A file or a part that cannot be decoded, a server that fails, and an answer that cannot be read cost that part only,
    and are named. The status is 1 if there is no event. Ctrl-C ends everything at once and keeps what was found.
    """
    from model.swarm.video.analysis import VideoLimits
    from pipelines.swarm_video import VideoQuestion, watch_videos

    limits = VideoLimits(part_seconds, frames, frame_size, max_tokens, at_once)
    asked = VideoQuestion(
        tuple(files), question, endpoint, model, api_key_env, limits, request_timeout, sequential, price_in, price_out
    )  # fmt: skip
    if not watch_videos(asked, out, trace, as_json=as_json):
        raise typer.Exit(1)


def show(
    trace: Annotated[Path, typer.Argument(help="A trace's JSON file, or the folder of a run, for example runs/tiny.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page to write, or for a run the folder. Default: next to TRACE, or RUN/swarm.",
        ),
    ] = None,
) -> None:
    """Write the HTML page of a swarm episode and print who worked when.

    The steps parl and evaluate of a run keep the traces of a few episodes in MLflow; of a run's folder, all of them
    are fetched. No browser is opened.
    """
    from pipelines.swarm_traces import show as render

    render(trace, output, Console())
