"""The held-out suites: which tasks, how an episode of them runs, and how far it may go (limits: ours).

Limits are a little above the longest reference turn, so that a model which never stops costs little.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from model.data.sample import Sample
from model.data.shards import Shard
from model.data.source import BrokenShard
from model.data.stream import MAX_BROKEN
from model.errors import MoonflowError

if TYPE_CHECKING:
    from model.data.folder import DataFolder  # brings torch, which whoever reads names of suites does not want

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """One row of the evaluation table.

    Attributes:
        name: of the suite; that of its task family unless one family is run in several ways.
        family: where the tasks come from.
        mode: "episode" (an answer, or tool calls and an answer), or a wide search by a "single" agent or a "swarm".
        max_new_tokens: per completion.
        max_turns: completions of an episode; for wide search the budget of critical steps.
        share: of the tasks asked for that are run; below 1 for suites whose episodes are long.
    """

    name: str
    family: str
    max_new_tokens: int
    max_turns: int = 1
    mode: Literal["episode", "single", "swarm"] = "episode"
    share: float = 1.0

    def tasks(self, count: int) -> int:
        """How many tasks are run where ``count`` are asked for; at least two."""
        return max(2, round(count * self.share))


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("fact_qa", "fact_qa", 16),
        Suite("reasoning_gym", "reasoning_gym", 20),
        Suite("array_tool", "array_tool", 48, max_turns=3),
        Suite("sub_search", "sub_search", 40, max_turns=3),
        Suite("wide_search_single", "wide_search", 160, max_turns=8, mode="single", share=0.5),
        Suite("wide_search_swarm", "wide_search", 160, max_turns=8, mode="swarm", share=0.5),
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
        Suite("video_digits", "video_digits", 8),
        Suite("video_clip", "video_clip", 10),
    )
}


def available(data: DataFolder) -> list[Suite]:
    """The suites whose family has held-out samples in a data folder; at least one.

    Raises:
        MoonflowError: there is none.
    """
    found = [suite for suite in SUITES.values() if data.index["families"].get(suite.family, {}).get("eval")]
    if not found:
        raise MoonflowError(f"{data.path}/index.json lists no held-out tasks; run prepare_data again")
    return found


def held_out(data: DataFolder, suite: Suite, count: int) -> list[Sample]:
    """The first held-out tasks of a suite's family: its share of ``count`` (fewer if there are fewer), as `readable`
    gives them."""
    return list(islice(readable(data, suite.family), suite.tasks(count)))


def readable(data: DataFolder, family: str) -> Iterator[Sample]:
    """The held-out samples of a family in their order; one that cannot be read is named and passed over.

    Raises:
        MoonflowError: more than ``MAX_BROKEN`` of them cannot be read; a shard cannot be reached now.
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
                            f"{MAX_BROKEN:.0%}: mend the data; the last was: {error}"
                        ) from error
                else:
                    yield sample
