"""Odd tars and records, as users' tools write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable

from model.data.samples.problems import Note, Problem
from model.data.samples.sample import Sample
from model.data.user.user_data import Part


def record(key: str, **fields: object) -> bytes:
    """The json of a text sample; a field of None is left out."""
    text = [{"type": "text", "text": key, "loss": True}]
    base = {"key": key, "family": "f", "ability": "coding", "modality": "text", "source": f"s/{key}", "segments": text}
    return json.dumps({name: value for name, value in {**base, **fields}.items() if value is not None}).encode()


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w") -> bytes:
    """A tar of files by name and content, and of headers without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def read_parts(parts: Iterable[Part]) -> tuple[list[Sample], list[str], list[str]]:
    """Samples, problems and notes of a source; every line is one that any terminal takes."""
    found = [one for part in parts for one in part.samples()]
    lines = [one.line for one in found if not isinstance(one, Sample)]
    assert all(line.isprintable() and line.encode() for line in lines)
    problems = [one.line for one in found if isinstance(one, Problem)]
    return [one for one in found if isinstance(one, Sample)], problems, [o.line for o in found if isinstance(o, Note)]
