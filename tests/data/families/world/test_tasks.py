"""The tasks of the world: what is asked, that it is true, and what its trajectories show."""

from __future__ import annotations

import re

import numpy as np
import pytest

from model.boundary.errors import MoonflowError
from model.codec.tools import SWARM_TOOLS
from model.data.families.family import Family
from model.data.families.world import DRAWS, FAMILIES, WORLD_NOTES, WORLD_PART, Delegation, world_family
from model.data.families.world.facts import facts
from model.data.families.world.index import View, world
from model.data.families.world.tasks import roots
from model.data.families.world.wordings import BULK, DEEP, DOCUMENT, EASY, EASY_PAGE, NOTES, WIDE
from model.data.samples.sample import Sample
from model.rl import rewards

BY_NAME = {family.name: family for family in FAMILIES}
PARTED = [name for name in DRAWS if name != "world_easy"]


def turns(sample: Sample) -> list[list[str]]:
    replies = [message for message in sample.messages if message["role"] == "assistant"]
    return [[call["name"] for call in reply.get("tool_calls", [])] for reply in replies]


def drawn(family: Family, split: str, count: int) -> list[Sample]:
    return [family.sample(7, split, index) for index in range(count)]  # type: ignore[arg-type]


def test_a_wide_search_asks_for_what_is_true() -> None:
    for sample in drawn(BY_NAME["world_wide"], "eval", 60):
        _, *attributes = sample.answer["columns"]
        for left, (item, *values) in zip(range(len(sample.answer["rows"]), 0, -1), sample.answer["rows"], strict=True):
            number, _, title = item.partition(":")
            thing = facts().things[title]
            assert number == str(left)  # the last one is 1, so that an agent knows when to stop
            assert thing.split == "eval" and [f"{each}:{thing.attributes[each]}" for each in attributes] == values
        assert [row[0] for row in sample.answer["rows"]] == re.findall(r"^\d+:.*$", sample.messages[0]["content"], re.M)
        assert (
            sample.reward == "item_f1" and rewards.score("row_f1", sample.messages[-1]["content"], sample.answer) == 1.0
        )


def test_a_deep_search_has_one_winner_and_the_answer_is_its_value() -> None:
    for split in ("train", "eval"):
        for sample in drawn(BY_NAME["world_deep"], split, 60):
            question = sample.messages[0]["content"]
            asked = re.search(r'[Oo]f the .*?(?:of|where|that|called) "(.+?)"', question)
            most, measure = re.search(r'the (smallest|largest) "(\w+)"', question).groups()  # type: ignore[union-attr]
            assert asked
            found = [
                root for kind in ("country", "language", "module", "name") for root in roots(kind, split)  # type: ignore[arg-type]
                if root.title.removesuffix(" (name)") == asked[1]
            ]  # fmt: skip
            best = [
                (min if most == "smallest" else max)(root.branches, key=lambda t: float(t.attributes[measure]))
                for root in found
                if all(measure in thing.attributes for thing in root.branches)
            ]
            name, _, value = sample.answer.partition(":")
            assert any(thing.attributes.get(name) == value for thing in best)
            assert split == "eval" or all(thing.split == "train" for root in found for thing in root.branches)


def test_the_parts_of_a_document_and_of_a_bulk_download_are_counted_anew() -> None:
    for sample in drawn(BY_NAME["world_document"], "train", 20):
        country = facts().things[sample.source.removeprefix("country/")].title
        what = sample.answer["columns"][1]
        for part, value in sample.answer["rows"]:
            text = world().library.pages[world().number(f"{country} (gazetteer), part {part}")].text
            people = {line.split("|")[0]: int(line.split("|")[1]) for line in text.split("\n")}
            ordered = sorted(people, key=lambda name: people[name])
            over = str(sum(count > 50_000 for count in people.values()))
            assert value == (over if "number" in what else ordered[0] if "least" in what else ordered[-1])
    for sample in drawn(BY_NAME["world_bulk"], "train", 20):
        for item, value in sample.answer["rows"]:
            country = item.partition(":")[2]
            text = world().library.pages[world().number(f"{country} (city file)")].text
            mirror = next(name for name in re.findall(r"f\d+-\d+m\.csv", text))
            people = [int(line.split(",")[1]) for line in (world().file(mirror) or "").split("\n")[1:]]
            assert int(value) in (sum(people), max(people), sum(count > 500_000 for count in people))


@pytest.mark.parametrize("name", PARTED)
def test_a_swarm_assigns_all_parts_in_one_turn_and_a_single_agent_none(name: str) -> None:
    seen = set()
    for sample in drawn(BY_NAME[name], "train", 30):
        mode, of = sample.environment["mode"], turns(sample)
        seen.add(mode)
        parts = int(sample.key.split("-n")[1].split("-")[0])
        if mode == "swarm":
            assert of[-3:] == [["create_subagent"], ["assign_task"] * parts, []]
        else:
            assert all(len(turn) == 1 for turn in of[:-1]) and of[-1] == []
            assert not {"create_subagent", "assign_task"} & {call for turn in of for call in turn}
        assert not re.search("parallel|at once|same time|agent", sample.messages[0]["content"])
    assert seen == {"swarm", "single"}


def test_where_delegation_is_mixed_a_turn_gives_away_one_part_some_or_all_and_easy_tasks_too() -> None:
    family = world_family("world_wide", (4,), delegation=Delegation(1.0, mixed=True))
    at_once = set()
    for sample in drawn(family, "train", 30):
        _, *groups, last = turns(sample)
        sizes = [len(group) for group in groups]
        assert {call for group in groups for call in group} == {"assign_task"} and last == []
        assert sum(sizes) == 4 and sizes[0] == max(sizes)
        assert rewards.score("row_f1", sample.messages[-1]["content"], sample.answer) == 1.0
        at_once.add(sizes[0])
    assert at_once == {1, 2, 3, 4}
    few = Delegation(0.2, mixed=True)
    modes = [sample.environment["mode"] for sample in drawn(world_family("world_easy", delegation=few), "train", 60)]
    assert 3 <= modes.count("swarm") <= 24


def test_an_orchestrator_without_other_tools_divides_tasks_of_any_size_whose_question_tells_the_parts() -> None:
    bare = Delegation(0.0, mixed=True, up_to={"world_wide": 2}, bare=1.0)
    for name, size in (("world_wide", 2), ("world_wide", 8), ("world_bulk", 2)):
        for sample in drawn(world_family(name, (size,), delegation=bare), "train", 3):
            assert sample.tools == [*SWARM_TOOLS] and sum(map(len, turns(sample)[1:])) == size
            assert sample.environment["mode"] == "swarm"
    for name, size in (("world_deep", 2), ("world_document", 2), ("world_easy", 1)):
        for sample in drawn(world_family(name, (size,), delegation=bare), "train", 3):
            assert sample.environment["mode"] == "single" and "search" in sample.tools
    held_out = drawn(world_family("world_wide", (2,), delegation=bare), "eval", 3)
    assert all("search" in sample.tools and sample.environment["mode"] == "single" for sample in held_out)


def test_a_fact_costs_two_to_four_calls_and_an_easy_one_at_most_two() -> None:
    costs = set()
    for index in range(120):
        sample = WORLD_PART.sample(3, "train", index * 4)  # each fourth is a part of a wide search
        costs.add(len(turns(sample)) - 1)
    assert costs <= {2, 3, 4, 5} and {2, 3} <= costs
    assert {len(turns(sample)) - 1 for sample in drawn(BY_NAME["world_easy"], "eval", 60)} == {1, 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [("world_wide", WIDE), ("world_deep", DEEP), ("world_document", DOCUMENT), ("world_bulk", BULK),
     ("world_easy", (*EASY[:-1], *EASY_PAGE[:-1], EASY[-1], EASY_PAGE[-1]))],
)  # fmt: skip
def test_the_last_wording_is_held_out(name: str, options: tuple[str, ...]) -> None:
    def heard(sample: Sample, wording: str) -> bool:
        pattern = ".*".join(re.escape(part) for part in re.split(r"\{\w+\}", wording))
        return re.match(pattern, sample.messages[0]["content"], re.IGNORECASE | re.DOTALL) is not None

    small = world_family(name, (2,))
    last = options[-2:] if name == "world_easy" else options[-1:]
    train, held = drawn(small, "train", 60), drawn(small, "eval", 60)
    others = [each for each in options if each not in last]
    assert all(any(heard(sample, each) for each in others) for sample in train)
    assert 0.3 < np.mean([not any(heard(sample, each) for each in others) for sample in held]) < 0.7


def test_notes_are_put_in_order_and_their_values_must_be_copied() -> None:
    with_asked = set()
    for sample in drawn(WORLD_NOTES, "train", 40):
        rows, heard = sample.answer["rows"], sample.messages[0]["content"].split("\n")
        lines = ["|".join(row) for row in rows]
        assert set(lines) <= set(heard) and sample.messages[-1]["content"].split("\n") == lines
        assert [int(row[0].partition(":")[0]) for row in rows] == list(range(len(rows), 0, -1))
        asked = {"|".join([row[0], *sample.answer["columns"][1:]]) for row in rows}
        with_asked.add(asked <= set(heard))
        for column, name in enumerate(sample.answer["columns"][1:], start=1):
            true = {f"{name}:{facts().things[row[0].partition(':')[2]].attributes[name]}" for row in rows}
            assert {row[column] for row in rows} == true, "values change places, and stay of their kind"
    assert with_asked == {True, False}
    held_out = drawn(WORLD_NOTES, "eval", 40)
    last = NOTES[-1].partition("\n")[0]
    assert 0.2 < np.mean([sample.messages[0]["content"].startswith(last) for sample in held_out]) < 0.8
    assert not any(sample.messages[0]["content"].startswith(last) for sample in drawn(WORLD_NOTES, "train", 40))


def test_another_view_and_other_sizes_give_other_tasks() -> None:
    family = world_family("world_wide", (16,), View(results=6, window=2000))
    sample = family.sample(0, "eval", 0)
    assert len(sample.answer["rows"]) == 16 and sample.environment["world"] == {"results": 6, "window": 2000}
    with pytest.raises(MoonflowError, match="sizes of world_wide: give numbers of parts from 1 to 64"):
        world_family("world_wide", (0, 2))
