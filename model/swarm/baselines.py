"""What a swarm is compared with: other ways to run the same episode, under the same budget of critical steps.

Sources: K2.5 paper, Agent Swarm, compares a swarm with a single agent whose context is managed. ``hide_tool_result``:
past a threshold only the newest round of tool results is kept, and all that the agent wrote itself. ``discard_all``
(also DeepSeek-V3.2): past the threshold the agent starts again from the question. The threshold and the notes are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from model.codec.chat import AssistantTurn, Message, encode_turns
from model.codec.tokenizer import Tokenizer
from model.codec.tools import SWARM_TOOLS
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample
from model.rl.environment import Respond

Mode = Literal["swarm", "must_delegate", "single", "hide_tool_result", "discard_all"]
"""``swarm``: an orchestrator with the task's tools. ``must_delegate``: it has none but those of the swarm. ``single``:
an agent that has only the task's tools; its episode ends when the context is full. The last two are single agents whose
context is shortened instead."""
MODES: tuple[Mode, ...] = get_args(Mode)
NEARLY_FULL = 0.75  # share of the window (ours)
HIDDEN = "(hidden)"
DISCARDED = "The context was nearly full: all work since the question was dropped. Go on from the question."


def agent_tools(sample: Sample, mode: str) -> list[str]:
    """The tools that the leading agent of an episode has for a task; a sub-agent has those of ``single``."""
    own = [tool for tool in sample.tools if tool not in SWARM_TOOLS and mode != "must_delegate"]
    return [*own, *SWARM_TOOLS] if mode in ("swarm", "must_delegate") else own


class ContextKeeper:
    """Watches the context of an episode's leading agent, and shortens it where the mode says so.

    The tokens of such an episode are those of its last context: it can be measured, and not trained on.

    Attributes:
        largest: tokens that the context held at most, after a completion.
        dropped: tokens of the contexts that were replaced by a shorter one.

    Args:
        prompt: of the episode; not in thinking mode.
        max_tokens: the window.
    """

    def __init__(self, mode: Mode, prompt: TokenizedSample, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._mode, self._tokenizer, self._threshold = mode, tokenizer, NEARLY_FULL * max_tokens
        self._begin, self._rounds = len(prompt.input_ids), list[list[Message]]()
        self._question = [int(token) for token in prompt.input_ids]
        self.largest = self.dropped = 0

    def watched(self, respond: Respond) -> Respond:
        """``respond``, whose results are remembered, so that they can be hidden later."""

        async def remembering(turn: AssistantTurn) -> list[Message]:
            self._rounds.append(await respond(turn))
            return self._rounds[-1]

        return remembering

    def shorten(self, ids: list[int], mask: list[bool], logprobs: list[float], versions: list[int]) -> None:
        """As `model.rl.environment.Shorten`."""
        self.note_size(mask)
        if len(ids) < self._threshold or not self._rounds:
            return
        before = len(ids)
        if self._mode == "discard_all":
            self._begin_again(ids, mask, logprobs, versions)
        elif self._mode == "hide_tool_result":
            self._hide(ids, mask, logprobs, versions)
        self.dropped += before if len(ids) < before else 0

    def note_size(self, mask: Sequence[bool]) -> None:
        """Count what the context holds up to its last sampled token."""
        self.largest = max(self.largest, max((n + 1 for n, mine in enumerate(mask) if mine), default=len(mask)))

    def _begin_again(self, ids: list[int], mask: list[bool], logprobs: list[float], versions: list[int]) -> None:
        opening = len(encode_turns([], self._tokenizer, 0))  # of the agent's turn, which the note comes before
        note = encode_turns([{"role": "system", "content": DISCARDED}], self._tokenizer, 0)
        ids[:] = [*self._question[:-opening], *note]
        mask[:], logprobs[:], versions[:] = [False] * len(ids), [0.0] * len(ids), [0] * len(ids)
        self._begin, self._rounds = len(ids), []

    def _hide(self, ids: list[int], mask: list[bool], logprobs: list[float], versions: list[int]) -> None:
        """Replace the tool results of all rounds but the newest by a note, where that is shorter."""
        tokens = list(zip(ids, mask, logprobs, versions, strict=True))
        kept, rounds = tokens[: self._begin], iter(self._rounds[:-1])
        for start, end in _runs(mask, self._begin):
            part = tokens[start:end]
            if not mask[start] and (heard := next(rounds, None)) is not None:
                note = encode_turns([_hidden(message) for message in heard], self._tokenizer, 0)
                part = [(token, False, 0.0, 0) for token in note] if len(note) < len(part) else part
            kept += part
        ids[:], mask[:], logprobs[:], versions[:] = map(list, zip(*kept, strict=True))


def _hidden(message: Message) -> Message:
    return {**message, "content": HIDDEN} if message["role"] == "tool" else message


def _runs(mask: Sequence[bool], begin: int) -> list[tuple[int, int]]:
    """The stretches from ``begin`` on in which the mask does not change: completions and what they were answered."""
    edges = [begin, *(n for n in range(begin + 1, len(mask)) if mask[n] != mask[n - 1]), len(mask)]
    return list(zip(edges, edges[1:], strict=False))
