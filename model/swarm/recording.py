"""Records an episode over token ids: an engine and tools that add what they do to an agent's trace (source: ours).

They pass everything on unchanged, so a recorded episode samples what an unrecorded one would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.codec.chat import ToolCall, parse_assistant
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.rl.environment import Tools
from model.rollout.protocol import Completion, Request, RolloutEngine
from model.swarm.trace import Recording


class RecordedEngine:
    """Samples as ``engine`` does."""

    def __init__(self, engine: RolloutEngine, tokenizer: Tokenizer, at: Recording) -> None:
        self._engine, self._tokenizer, self._at = engine, tokenizer, at

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        start = self._at.agent.now()
        completions = await self._engine.generate(requests)
        for request, completion in zip(requests, completions, strict=False):
            text = said(completion.token_ids, self._tokenizer)
            self._at.completion(start, text, len(request.input_ids), len(completion.token_ids))
        return completions

    async def update_weights(self, checkpoint: Path) -> None:
        await self._engine.update_weights(checkpoint)


class RecordedTools:
    """Runs calls as ``tools`` does."""

    def __init__(self, tools: Tools, at: Recording) -> None:
        self._tools, self._at = tools, at

    async def call(self, call: ToolCall) -> str:
        start = self._at.agent.now()
        result = await self._tools.call(call)
        self._at.tool_call(start, call, result)
        return result


def said(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """What a completion says, without its calls; of a turn that cannot be read, all of it."""
    if not all(0 <= token < tokenizer.vocab_size for token in tokens):
        return "(tokens that the tokenizer does not have)"
    turn = parse_assistant(tokens, tokenizer)
    if turn.error is not None:
        return tokenizer.decode(tokens)
    return f"{turn.reasoning}\n\n{turn.content}".strip() if turn.reasoning else turn.content


def question_of(sample: Sample) -> tuple[str, str]:
    """The system prompt and the question of a task: its texts up to the first answer, media by their kind."""
    found: dict[str, list[str]] = {"system": [], "user": []}
    for message in sample.messages:
        if message.get("role") not in found:
            break
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found[message["role"]] += [str(part.get("text", f"[{part.get('type')}]")) for part in parts]
    return "\n".join(found["system"]), "\n".join(found["user"])


def expected_of(answer: Any) -> str:
    """The right answer of a task as text: a table or a list as lines."""
    if isinstance(answer, Mapping) and isinstance(rows := answer.get("rows"), list):
        return "\n".join("|".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
    if isinstance(answer, Mapping):
        return "\n".join(f"{item}: {value}" for item, value in answer.items())
    if isinstance(answer, Iterable) and not isinstance(answer, str):
        return "\n".join(str(item) for item in answer)
    return "" if answer is None else str(answer)
