"""Writes a dialogue turn by turn, and does what the tools do (source: ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.data.families.entities import Entity
from model.data.families.family import choose
from model.data.families.programs.session import CellSession
from model.data.samples.sample import Split

NOT_THERE = "no result"  # what a search says that finds nothing, as model.rl.tools.search has it


class Talk:
    """A dialogue about some entities. A search finds ``Peru:Lima`` under ``peru capital``."""

    def __init__(self, rng: np.random.Generator, split: Split, about: Sequence[Entity]) -> None:
        self.rng, self.split, self.about = rng, split, about
        self.messages: list[dict[str, Any]] = []
        self.records = {
            f"{entity.name} {key}".lower(): f"{entity.name}:{value}"
            for entity in about
            for key, value in entity.attributes.items()
        }
        self._session, self._calls = CellSession(), 0

    def user(self, wordings: Sequence[str], **fields: object) -> None:
        """A turn of the user, in one of these wordings; the last one is held out."""
        text = choose(self.rng, self.split, wordings).format(**fields)
        self.messages.append({"role": "user", "content": text})

    def reply(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def search(self, *queries: str) -> list[str]:
        """Searches in one turn; the values that were found, or NOT_THERE."""
        found = [self.records.get(query.lower(), NOT_THERE) for query in queries]
        self._turn("search", [{"query": query} for query in queries], found)
        return [line.rpartition(":")[2] for line in found]

    def run(self, code: str) -> str:
        """A program; what it printed."""
        printed, failed = self._session.run(code)
        if failed:
            raise RuntimeError(f"a program of a dialogue fails: {code}: {printed}")
        self._turn("ipython", [{"code": code}], [printed])
        return printed

    def _turn(self, tool: str, calls: Sequence[Mapping[str, str]], results: Sequence[str]) -> None:
        asked = [{"name": tool, "arguments": arguments} for arguments in calls]
        self.messages.append({"role": "assistant", "content": "", "tool_calls": asked})
        for result in results:
            answers = f"functions.{tool}:{self._calls}"
            self.messages.append({"role": "tool", "tool_call_id": answers, "content": result})
            self._calls += 1
