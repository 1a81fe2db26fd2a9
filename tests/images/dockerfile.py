"""A Dockerfile's instructions, and its `RUN pip install` lines as arguments that can be run elsewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("pipeline", "train", "serve")


def path(name: str) -> Path:
    return ROOT / "images" / f"{name}.Dockerfile"


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions as (word, rest); continued lines are joined, comments are left out."""
    lines = [line for line in path(name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(word.upper(), re.sub(r"\s+", " ", rest)) for word, rest in pairs]


def pip_installs(name: str) -> list[list[str]]:
    """The arguments of each `pip install` in the RUN instructions, in order, without --no-cache-dir."""
    return [words for word, rest in instructions(name) if word == "RUN" for words in pip_words(rest)]


def pip_words(command: str) -> list[list[str]]:
    """The same for one RUN instruction; its other programs are ignored."""
    found = []
    for words in map(shlex.split, command.split("&&")):
        # Variables may stand before the command: RUN NAME=value pip install ...
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if Path(words[0]).name == "pip":
            assert words[1] == "install", words
            found.append([word for word in words[2:] if word != "--no-cache-dir"])
    return found


def copied(name: str) -> list[str]:
    """The sources of the COPY instructions, relative to the repository."""
    return [source for word, rest in instructions(name) if word == "COPY" for source in rest.split()[:-1]]
