"""The held-out suites: their tasks, how an episode runs, and its limits (source: ours).

Limits are slightly above the longest reference turn, so that a model that never stops costs little.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from model.boundary.errors import MoonflowError
from model.data.samples.problems import MAX_BROKEN
from model.data.samples.sample import Sample
from model.data.samples.shard_source import BrokenShard
from model.data.samples.shards import Shard

if TYPE_CHECKING:
    from model.data.batches.folder import DataFolder  # imports torch, which a reader of suite names does not need

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """One row of the evaluation table.

    Attributes:
        name: the name of its task family, unless one family is run in several ways.
        family: the family of its tasks.
        max_new_tokens: tokens of one completion.
        max_turns: completions of an episode; for a wide search, the budget of critical steps.
        mode: "episode" (an answer, or tool calls and an answer), a wide search by a "single" agent or a "swarm", or
            "document" (the end of a document, as it is trained on, is to be completed).
        share: part of the requested tasks that is run; below 1 for suites with long episodes or documents.
    """

    name: str
    family: str
    max_new_tokens: int
    max_turns: int = 1
    mode: Literal["episode", "single", "swarm", "document"] = "episode"
    share: float = 1.0

    def tasks(self, count: int) -> int:
        """How many tasks are run if ``count`` are requested; at least two."""
        return max(2, round(count * self.share))

    def task(self, sample: Sample) -> Sample:
        """The sample as a task of this suite: a document gets the text of its last segment as its exact answer."""
        if self.mode != "document":
            return sample
        return replace(sample, answer=sample.segments[-1]["text"], reward="exact")


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("fact_qa", "fact_qa", 16),
        Suite("reasoning_gym", "reasoning_gym", 20),
        Suite("array_tool", "array_tool", 48, max_turns=3),
        Suite("image_program", "image_program", 200, max_turns=4, share=0.25),
        Suite("thinking", "thinking", 200, share=0.5),
        Suite("coding", "coding", 160, max_turns=4, share=0.25),
        Suite("dialogue", "dialogue", 80, max_turns=7, share=0.5),
        Suite("judge_pair", "judge_pair", 128),
        Suite("judge_rubric", "judge_rubric", 100),
        Suite("judge_list", "judge_list", 320, share=0.5),
        Suite("open_answer", "open_answer", 64, share=0.5),
        Suite("sub_search", "sub_search", 40, max_turns=3),
        Suite("wide_search_single", "wide_search", 160, max_turns=8, mode="single", share=0.5),
        Suite("wide_search_swarm", "wide_search", 160, max_turns=8, mode="swarm", share=0.5),
        Suite("needle", "needle", 4, mode="document", share=0.5),
        Suite("digit_string", "digit_string", 8),
        Suite("digit_count", "digit_count", 6),
        Suite("digit_tally", "digit_tally", 6),
        Suite("grounding", "grounding", 16),
        Suite("scene_box", "scene_box", 16),
        Suite("scene_caption", "scene_caption", 48),
        Suite("ocr_line", "ocr_line", 20),
        Suite("ocr_text", "ocr_text", 20),
        Suite("photo", "photo", 10),
        Suite("chart", "chart", 10),
        Suite("array_tool_image", "array_tool_image", 48, max_turns=3),
        Suite("image_program_image", "image_program_image", 200, max_turns=4, share=0.25),
        Suite("video_digits", "video_digits", 8),
        Suite("video_clip", "video_clip", 10),
        Suite("video_needle", "video_needle", 1, mode="document", share=0.25),
    )
}


def available(data: DataFolder) -> list[Suite]:
    """The suites whose family has held-out samples in a data folder.

    Raises:
        MoonflowError: there are none.
    """
    found = [suite for suite in SUITES.values() if data.index["families"].get(suite.family, {}).get("eval")]
    if not found:
        raise MoonflowError(f"{data.path}/index.json lists no held-out tasks; run prepare_data again")
    return found


def held_out(data: DataFolder, suite: Suite, count: int) -> list[Sample]:
    """The first held-out tasks of a suite: ``suite.tasks(count)`` of them, or all if there are fewer.

    Raises:
        MoonflowError: too many of them cannot be read; see `readable`.
    """
    return [suite.task(sample) for sample in islice(readable(data, suite.family), suite.tasks(count))]


def readable(data: DataFolder, family: str) -> Iterator[Sample]:
    """The held-out samples of a family, in order. A sample that cannot be read is named in the log and left out.

    Raises:
        MoonflowError: more than ``MAX_BROKEN`` of them cannot be read, or a shard cannot be reached.
    """
    entries, lost = data.entries(family, "eval"), 0
    total = sum(entry["samples"] for entry in entries)
    for entry in entries:
        try:
            shard = Shard(data.source.open(entry["shard"]), entry["shard"])
        except BrokenShard as damage:
            shard = Shard.lost(damage, entry["shard"])
        with closing(shard):
            for number in range(entry["samples"]):
                try:
                    sample = shard[number]
                except MoonflowError as error:
                    lost += 1
                    log.warning("%s (it is left out)", error)
                    if lost > MAX_BROKEN * total:
                        raise MoonflowError(
                            f"{lost} of {total} held-out samples of {family} cannot be read, more than "
                            f"{MAX_BROKEN:.0%}: fix the data; the last was: {error}"
                        ) from error
                else:
                    yield sample
