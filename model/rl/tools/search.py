"""Search over the records of a task (source: ours; a closed world, so that rewards are verifiable)."""

from __future__ import annotations

from collections.abc import Mapping

NO_RESULT = "no result"


def search(records: Mapping[str, str], query: str) -> str:
    """The record whose lower-case key is the query up to case and spacing, or "no result"."""
    return records.get(" ".join(query.lower().split()), NO_RESULT)
