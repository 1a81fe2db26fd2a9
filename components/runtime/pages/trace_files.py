"""The files that a run keeps of a swarm episode: its trace, and the page that shows it (source: ours).

They are small, whatever the episode was: texts are shortened until they fit.
"""

from __future__ import annotations

from components.runtime.pages.episode import render
from model.swarm.trace import Trace

FOLDER = "swarm"
"""Of a step's MLflow run."""
JSON_BYTES, PAGE_BYTES = 150_000, 600_000


def trace_files(name: str, trace: Trace) -> dict[str, str]:
    """Path -> text of ``swarm/<name>.json`` and ``.html``, of at most JSON_BYTES and PAGE_BYTES; empty if the episode
    has so many steps that even short texts do not fit."""
    most = JSON_BYTES
    while (short := trace.within(most)) is not None:
        page = render(short)
        if len(page.encode()) <= PAGE_BYTES:
            return {f"{FOLDER}/{name}.json": short.to_json(), f"{FOLDER}/{name}.html": page}
        most //= 2
    return {}
