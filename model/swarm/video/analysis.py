"""Videos watched by a swarm: a sub-agent per part, all at the same time, then one orchestrator's turn that merges what
they found (source: K2.5 paper, the agent swarm that watches 24 hours of a game; that the parts are fixed: ours).

What breaks in one part costs that part. Only a server that refuses the key or has no such model, or that is away
(`model.swarm.video.outage`), ends the asking; what was found until then is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.boundary.at_once import all_of
from model.boundary.errors import MoonflowError, Transient, Unavailable
from model.swarm.chat.board import AgentState, Board
from model.swarm.chat.endpoint import ChatEndpoint, Late, Reply
from model.swarm.critical_steps import CriticalSteps
from model.swarm.trace import AgentRecorder, Recorder, Recording, Trace
from model.swarm.video import answers
from model.swarm.video.answers import Event, clock, read_events, read_merged
from model.swarm.video.decoding import MAX_FILE_S, Clip, Decoder, Frame, Undecodable
from model.swarm.video.outage import Outage
from model.swarm.video.prompts import ORCHESTRATOR, WATCHER, merging_task, part_messages, part_task
from model.swarm.video.results import KEYS, READ, Found, Part, Video, split

CONTEXT = 32_768  # tokens, of a server that does not say (ours)
TURN_SHARE = 4  # of a context, for one answer, as in `model.swarm.chat`
EVENT_BYTES = 2  # of events, for each token of the orchestrator's context: it leaves room for question and answer


@dataclass(frozen=True)
class VideoLimits:
    """Limits of one analysis (values: ours).

    Attributes:
        part_seconds: of a part.
        frames: most frames that the sub-agent of a part sees. frame_size: pixels of their longer side.
        max_tokens: of one answer.
        at_once: most parts that are watched at the same time.
    """

    part_seconds: float = 60.0
    frames: int = 8
    frame_size: int = 448
    max_tokens: int = 2_048
    at_once: int = 8


class VideoSwarm:
    """One analysis of some files.

    ``board`` shows what goes on; ``found`` and ``trace`` what there is so far, also after an error or a cancellation.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        decoder: Decoder,
        files: Sequence[Path],
        question: str,
        limits: VideoLimits,
        prices: tuple[float, float] | None = None,
        context: int | None = None,
    ) -> None:
        """``context``: tokens that the server holds, None if it does not say."""
        self._endpoint, self._decoder, self._question, self._limits = endpoint, decoder, question, limits
        self._context = context or CONTEXT
        self._answer_tokens = max(1, min(limits.max_tokens, self._context // TURN_SHARE))
        self._recorder, self._steps = Recorder(), CriticalSteps(2)
        self.board = Board(self._steps, self._recorder, prices)
        self.found = Found([Video(path) for path in files])
        self._main = self._recorder.agent("orchestrator", system_prompt=ORCHESTRATOR, task=question)
        self._over = ""  # why no other part is asked
        self._outage = Outage()
        self._outcome = "stopped"

    async def watch(self, *, sequential: bool = False) -> None:
        """Watch all parts and merge what they show; ``sequential`` then watches them again, one at a time."""
        agent = self.board.add("orchestrator", self._question)
        self.board.begin(agent)
        try:
            await self._watch(agent)
            if sequential:
                await self._one_at_a_time()
        finally:
            self._main.ended(self._outcome, self.found.failure)
            self.board.end(agent, self._outcome)

    async def _watch(self, agent: AgentState) -> None:
        agent.doing = "reads the files"
        await all_of(self._open(video) for video in self.found.videos)
        agent.doing = "waits for the parts"
        began, free = time.monotonic(), asyncio.Semaphore(self._limits.at_once)
        parts = [(video, part) for video in self.found.videos for part in video.parts]
        states = [self.board.add(_name(video, part), self._task(video, part)) for video, part in parts]
        try:
            await all_of(self._assigned(*each, state, free) for each, state in zip(parts, states, strict=True))
        finally:
            self.found.wall_s = time.monotonic() - began
        if any(part.shown for _, part in parts):
            self._steps.spend(0, [1])
        await self._merge(agent)

    async def _open(self, video: Video) -> None:
        """Find out how long a file is, and split it."""
        try:
            video.header = await self._decoder.header(video.path)
        except Undecodable as error:
            video.failure = str(error)
            return
        seconds = min(video.header.seconds, MAX_FILE_S)
        video.parts, video.note = split(seconds, self._limits.part_seconds)
        if video.header.cut:
            video.note = f"only its first {clock(seconds)} are watched: its end takes too long to find; {video.note}"
            video.note = video.note.rstrip("; ")

    async def _assigned(self, video: Video, part: Part, state: AgentState, free: asyncio.Semaphore) -> None:
        """Watch a part when it is its turn; how that ends is recorded, whatever happens."""
        task = self._task(video, part)
        at = self._recorder.agent(state.name, parent=self._main, main_step=1, system_prompt=WATCHER, task=task)
        asked_at = self._recorder.now()
        try:
            async with free:
                if self._over:
                    part.outcome, part.failure = "not asked", self._over
                    return
                self.board.begin(state)
                asked_at = self._recorder.now()
                await self._watched(video, part, state, at)
        finally:
            part.outcome = part.outcome or "stopped"
            self.found.keep_pictures(part)
            outcome = "answer" if part.outcome in READ else part.outcome
            at.ended(outcome, part.failure)
            told = "; ".join(f"{clock(event.seconds)} {event.text}" for event in part.events) or part.failure
            asked = {"agent": state.name, "prompt": task}
            self._main.tool_call(asked_at, "assign_task", asked, told or part.outcome, main_step=1, critical_step=1)
            self.board.end(state, outcome)

    async def _watched(self, video: Video, part: Part, state: AgentState, at: AgentRecorder) -> None:
        """Decode a part, ask about it, and read the answer; what breaks is written down in the part."""
        try:
            clip = await self._clip(video, part, state)
            if clip.still:
                part.outcome = "still"
                return
            reply = await self._asked(video, part, clip, state, at)
            part.prompt_tokens, part.new_tokens = reply.prompt_tokens, reply.new_tokens
            self._read(part, clip, reply)
        except Undecodable as error:
            part.outcome, part.failure = "undecodable", str(error)
        except MoonflowError as error:
            part.outcome, part.failure = "failed", str(error)
        except Exception as error:  # a reply that nobody foresaw
            part.outcome = "failed"
            part.failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]

    async def _clip(self, video: Video, part: Part, state: AgentState) -> Clip:
        state.doing = "waits for a core"
        async with self._decoder.free:
            state.doing, began = "decodes", time.monotonic()
            try:
                clip = await self._decoder.clip(
                    video.path, part.start, part.end, self._limits.frames, self._limits.frame_size
                )
            finally:
                part.decoding_s = time.monotonic() - began
        part.note, part.brightness, part.motion = clip.note, clip.brightness, clip.motion
        part.keys = clip.frames[:1]  # until the answer names others
        return clip

    async def _asked(self, video: Video, part: Part, clip: Clip, state: AgentState, at: AgentRecorder) -> Reply:
        part.shown, state.doing, began = len(clip.frames), "thinks", time.monotonic()
        state.steps += 1
        recording, started = Recording(at), self._recorder.now()
        try:
            messages = part_messages(self._task(video, part), clip.frames)
            reply = await self._endpoint.complete(messages, [], self._answer_tokens)
            self._outage.answered()
        except (Unavailable, Late) as error:
            away = isinstance(error, Transient | Late)
            if not away or self._outage.failed(began, time.monotonic()):
                self._over = f"not asked any more, as {error}"
            raise
        finally:
            part.answer_s = time.monotonic() - began
        self._count(state, reply)
        recording.completion(started, self._safe(reply.content), reply.prompt_tokens, reply.new_tokens)
        return reply

    def _read(self, part: Part, clip: Clip, reply: Reply) -> None:
        try:
            part.events, named = read_events(self._safe(reply.content), part.start, part.end)
        except answers.Unreadable:
            part.outcome, part.failure = "unreadable", "its answer has no event: no line is like 01:15 | 4 | a goal"
            return
        part.outcome, part.keys = "answer", _keys(clip.frames, part.events, named)

    async def _merge(self, agent: AgentState) -> None:
        found = self.found
        if not found.events:
            self._outcome, found.failure = "empty", "no part has an event to sum up"
            return
        agent.doing = "sums up"
        files = [(video.name, video.seconds, video.events) for video in found.videos]
        unread = sum(part.outcome not in READ for part in found.parts)
        task, found.left_out = merging_task(self._question, files, unread, EVENT_BYTES * self._context)
        messages = [{"role": "system", "content": ORCHESTRATOR}, {"role": "user", "content": task}]
        agent.steps += 1
        self._steps.spend(1)
        at = Recording(self._main, main_step=2, critical_step=2)
        try:
            began = at.agent.now()
            reply = await self._endpoint.complete(messages, [], self._answer_tokens)
            self._count(agent, reply)
            at.completion(began, self._safe(reply.content), reply.prompt_tokens, reply.new_tokens)
            found.merged = read_merged(self._safe(reply.content), [video.seconds for video in found.videos])
            self._outcome = "answer" if found.merged.answer or found.merged.summary else "empty"
            found.failure = "" if self._outcome == "answer" else "the orchestrator said nothing"
        except MoonflowError as error:
            self._outcome, found.failure = "failed", str(error)

    async def _one_at_a_time(self) -> None:
        """Watch the same parts again, one after the other; only how long that takes is kept.

        It ends at the first part that ends in another way than before: the two times could not be compared.
        """
        if self._over:
            self.found.unmeasured = self._over
            return
        again = [(video, part) for video in self.found.videos for part in video.parts]
        state = self.board.add("one at a time", f"{len(again)} parts again, to measure the speed-up")
        self._steps.budget += len(again)
        at = self._recorder.agent(
            state.name, parent=self._main, main_step=3, system_prompt=WATCHER, task=state.task
        )  # fmt: skip
        self.board.begin(state)
        began, outcome = time.monotonic(), "stopped"
        try:
            for video, part in again:
                second = Part(part.start, part.end)
                await self._watched(video, second, state, at)
                self._steps.spend(1)
                if second.outcome != part.outcome or self._over:
                    outcome = "failed"
                    self.found.unmeasured = (
                        self._over or f"{_name(video, part)} ended as {second.outcome}, before as {part.outcome}"
                    )
                    return
            outcome = "answer"
            self.found.sequential_s = time.monotonic() - began
        finally:
            at.ended(outcome, self.found.unmeasured)
            self.board.end(state, outcome)

    def _task(self, video: Video, part: Part) -> str:
        return part_task(video.name, part.start, part.end, self._question)

    def _count(self, state: AgentState, reply: Reply) -> None:
        state.prompt_tokens += reply.prompt_tokens
        state.new_tokens += reply.new_tokens
        self.board.counted &= reply.counted

    def _safe(self, text: str) -> str:
        """A text of the server without the key, which some repeat."""
        return text.replace(self._endpoint.key, "<key>") if self._endpoint.key else text

    @property
    def outcome(self) -> str:
        """Why it ended, as `model.swarm.turns.Finished.outcome`."""
        return self._outcome

    @property
    def trace(self) -> Trace:
        """What has happened so far."""
        merged = self.found.merged
        return self._recorder.trace(
            about={"endpoint": self._endpoint.url, "model": self._endpoint.model}, question=self._question,
            answer="\n\n".join(text for text in (merged.summary, merged.answer) if text), outcome=self._outcome,
            failure=self.found.failure or next(self.found.failures(), ""),
            critical_steps=self._steps.spent, budget=self._steps.budget,
        )  # fmt: skip


def _name(video: Video, part: Part) -> str:
    return f"{video.name[:60]} {clock(part.start)}"


def _keys(frames: Sequence[Frame], events: Sequence[Event], named: Sequence[float]) -> list[Frame]:
    """The frames that are kept: those that the answer names, else those nearest to the most important events."""
    times = [*named, *(event.seconds for event in sorted(events, key=lambda event: -event.importance))]
    found: dict[float, Frame] = {}
    for at in times:
        if len(found) < KEYS:
            frame = min(frames, key=lambda each: abs(each.seconds - at))
            found[frame.seconds] = frame
    return [found[at] for at in sorted(found)] or list(frames[:1])
