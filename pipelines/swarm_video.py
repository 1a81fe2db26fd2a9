"""``moonflow swarm video``: videos watched by a swarm, and one page that shows what it saw, whatever happens."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.runtime.pages import video as page
from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import cut, shown
from model.swarm.chat.endpoint import ChatEndpoint
from model.swarm.video.analysis import VideoLimits, VideoSwarm
from model.swarm.video.decoding import Decoder, check_frames
from model.swarm.video.results import READ, Found
from pipelines.commands.options import Stopped
from pipelines.swarm_session import kept_file, key_of, prices_of, save, save_trace, until_signal
from pipelines.swarm_view import summary, watched

LINES = 20  # of what was not watched, and of what was in part, in a terminal; the report has more
WHEN_LATE = "give a slow model longer with --request-timeout, or watch fewer parts at once with --at-once"


@dataclass(frozen=True)
class VideoQuestion:
    """What is asked of which files and endpoint; see `pipelines.commands.swarm.video`."""

    files: tuple[Path, ...]
    text: str
    endpoint: str
    model: str
    api_key_env: str
    limits: VideoLimits
    request_timeout: float
    sequential: bool
    price_in: float | None
    price_out: float | None


def watch_videos(asked: VideoQuestion, out: Path | None, trace: Path | None, *, as_json: bool) -> bool:
    """Watch the files, print what was found, and write the report and the trace; whether there is an event.

    Raises:
        MoonflowError: the endpoint or an option cannot be used.
        Stopped: a signal ended it.

    Whatever is raised after the watching began, report and trace have what was found until then.
    """
    prices, key = prices_of(asked.price_in, asked.price_out), key_of(asked.api_key_env, asked.endpoint)
    if not asked.text.strip():
        raise MoonflowError("the question is empty: ask something")
    check_frames(asked.limits.frames, asked.limits.frame_size)
    endpoint = ChatEndpoint(asked.endpoint, asked.model, key, asked.request_timeout, when_late=WHEN_LATE)
    report, record = kept_file(out, ".html", "--out"), kept_file(trace, ".json", "--trace")
    run = _Run(asked, endpoint, prices, Console(highlight=False))
    stopped, ended = 0, False
    try:
        _, stopped = asyncio.run(until_signal(run.work()))
        ended = not stopped
    finally:
        saved = run.save(report, record, key, stopped=not ended)
        if not ended and not stopped and saved["report"]:
            print(f"moonflow: the report so far is {saved['report']}", file=sys.stderr)
    if run.began:
        _print(run, saved)
    if as_json:
        print(json.dumps(_result(run, saved, bool(stopped))), flush=True)
    if stopped:
        print(f"moonflow: stopped{'; the report has what was found' if saved['report'] else ''}", file=sys.stderr)
        raise Stopped(128 + stopped)
    assert run.swarm is not None
    if not run.swarm.found.events:
        print("moonflow: nothing was found: the report says what became of each part", file=sys.stderr)
    elif run.swarm.found.failure:
        print(f"moonflow: no summary: {shown(run.swarm.found.failure, 400)}", file=sys.stderr)
    return bool(run.swarm.found.events)


class _Run:
    """One analysis; ``swarm`` is None until the endpoint has answered."""

    def __init__(
        self, asked: VideoQuestion, endpoint: ChatEndpoint, prices: tuple[float, float] | None, console: Console
    ) -> None:
        self.asked, self.endpoint, self.prices, self.console = asked, endpoint, prices, console
        self.swarm: VideoSwarm | None = None
        self.decoder = Decoder()

    @property
    def began(self) -> bool:
        """Whether there is something to keep."""
        return self.swarm is not None and bool(self.swarm.board.agents)

    async def work(self) -> None:
        async with self.endpoint, self.decoder as decoder:
            context = await self.endpoint.context()
            asked = self.asked
            self.swarm = VideoSwarm(
                self.endpoint, decoder, asked.files, asked.text, asked.limits, self.prices, context
            )  # fmt: skip
            async with watched(self.swarm.board, self.console):
                await self.swarm.watch(sequential=asked.sequential)

    def save(self, report: Path, record: Path, key: str, *, stopped: bool) -> dict[str, str | None]:
        """Write both files, if there is something to keep: the paths of those that could be written.

        An error of one does not keep the other from being written.
        """
        saved: dict[str, str | None] = {"report": None, "trace": None}
        if self.swarm is None or not self.began:
            return saved
        try:
            written = save_trace(self.swarm.trace, record, key)
            saved["trace"] = str(written) if written else None
        finally:
            html = page.render(
                self.swarm.found, self.swarm.board, question=self.asked.text, model=self.endpoint.model,
                endpoint=self.endpoint.url, stopped=stopped,
            )  # fmt: skip
            written = save(report, html, "the report", "--out")
            saved["report"] = str(written) if written else None
        return saved


def _print(run: _Run, saved: dict[str, str | None]) -> None:
    """What was found and what it took."""
    assert run.swarm is not None
    swarm, found = run.swarm, run.swarm.found
    for text in (found.merged.summary, found.merged.answer):
        if text:
            print(f"\n{cut(text, len(text))}")
    print(f"\n{_counts(found)}\n{summary(swarm.board, Counter())}")
    if found.speedup_told:
        print(f"speed-up over one part at a time: {found.speedup_told}")
    for what, lines in (("not watched", list(found.failures())), ("watched in part", list(found.notes()))):
        for line in lines[:LINES]:
            print(f"{what}: {shown(line, 300)}")
        if len(lines) > LINES:
            print(f"{what}: {len(lines) - LINES} more lines in the report")
    if run.decoder.unfiltered:
        print(f"the decoder of the videos was less confined, without seccomp: {shown(run.decoder.unfiltered, 200)}")
    if saved["report"]:
        print(f"report: {saved['report']}")
    if saved["trace"]:
        print(f"trace: {saved['trace']}; moonflow swarm show {saved['trace']} renders it")


def _counts(found: Found) -> str:
    outcomes = Counter(part.outcome for part in found.parts if part.outcome not in READ)
    lost = "".join(f", {count} {shown(outcome or 'not watched', 20)}" for outcome, count in outcomes.most_common())
    unread = sum(bool(video.failure) for video in found.videos)
    files = f"{len(found.videos)} files" + (f" ({unread} unreadable)" if unread else "")
    read = sum(part.outcome in READ for part in found.parts)
    return f"{len(found.events)} events; {files}, {read} of {len(found.parts)} parts watched{lost}"


def _result(run: _Run, saved: dict[str, str | None], stopped: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"outcome": "stopped", **saved}
    if run.swarm is not None:
        found, board = run.swarm.found, run.swarm.board
        result |= {
            "outcome": "stopped" if stopped else run.swarm.outcome,
            "summary": found.merged.summary,
            "answer": found.merged.answer,
            "events": len(found.events),
            "parts": dict(Counter(part.outcome or "not watched" for part in found.parts)),
            "unreadable_files": sum(bool(video.failure) for video in found.videos),
            "prompt_tokens": board.prompt_tokens,
            "new_tokens": board.new_tokens,
            "tokens_counted": board.counted,
            "cost": board.cost,
            "wall_s": round(found.wall_s, 3),
            "own_s": round(found.own_s, 3),
            "sequential_s": None if found.sequential_s is None else round(found.sequential_s, 3),
            "speedup": None if found.speedup is None else round(found.speedup, 3),
            "speedup_is": None
            if found.speedup is None
            else "measured"
            if found.sequential_s is not None
            else "at most",
        }
    return result
