from __future__ import annotations

import inspect
import re
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from model.data.families.stdlib import (
    CODE_WINDOW,
    MAX_CHARACTERS,
    PROSE_WINDOW,
    STDLIB_CODE,
    STDLIB_TEXT,
    TOPIC,
    WINDOW_CHARACTERS,
    identifiers,
    whole,
)
from model.data.samples.sample import Sample

STDLIB = Path(sysconfig.get_paths()["stdlib"])


def source_lines(sample: Sample) -> set[str]:
    if sample.source.startswith(TOPIC):
        text = topics[sample.source.removeprefix(TOPIC)]
    else:
        text = (STDLIB / sample.source).read_text(encoding="utf-8", errors="replace")
        text += "\n" + "\n".join(inspect.cleandoc(part) for part in re.findall(r'"""(.*?)"""', text, re.DOTALL))
    return {line.strip() for line in text.split("\n")}


@pytest.mark.parametrize("family", [STDLIB_TEXT, STDLIB_CODE], ids=lambda family: family.name)
def test_documents_are_the_named_sources_own_lines(family) -> None:
    for index in range(40):
        sample = family.sample(0, "eval", index)
        (segment,) = sample.segments
        assert segment["loss"] and 40 <= len(segment["text"]) <= MAX_CHARACTERS
        known = source_lines(sample)
        lines = [line.strip() for line in segment["text"].split("\n") if line.strip()]
        # The last line may be cut, and a docstring in code is emptied.
        inner = [line for line in lines[:-1] if '""' not in line]
        assert set(inner) <= known, (sample.source, set(inner) - known)


@pytest.mark.parametrize("family", [CODE_WINDOW, PROSE_WINDOW], ids=lambda family: family.name)
def test_windows_are_cut_out_of_the_whole_source_at_a_line(family) -> None:
    kind, at_end = family.name.removesuffix("_window"), 0
    for index in range(60):
        sample = family.sample(0, "eval", index)
        (segment,) = sample.segments
        text, cut = whole(sample.source, kind), segment["text"]
        assert segment["loss"] and 0.4 * WINDOW_CHARACTERS < len(cut) <= WINDOW_CHARACTERS
        assert ("\n" + text).find("\n" + cut) >= 0
        at_end += len(cut) < 0.9 * WINDOW_CHARACTERS
    assert at_end < 20  # only where a source ends, or at blank lines


def test_no_word_is_in_both_splits() -> None:
    train, held_out = set(identifiers("train")), set(identifiers("eval"))
    assert len(train) > 3000 and len(held_out) > 300
    assert not train & held_out
