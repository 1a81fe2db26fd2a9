"""The pages of the world: what stands on them, in which wording, with which date (source: ours).

A thing has one newest page. A quarter of the countries and cities have some of their figures on a second page, which
the first one links to. A fifth of all things also have a stale copy: the same title, an older date, and values of which
some are not true. Names that several things share have a page that lists them. Each larger country has a gazetteer in
parts, a file of its cities, and a page that tells the file's checksum and its mirror: some files have lost a line.

Names, values and attributes never follow a space, as in ``model.data.families.facts``: so they are the same tokens
wherever they stand, and can be copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.data.families.world.facts import Facts, Place, Thing, chance

# How a page states a value. Only pages of held-out things have the last one, in half of the cases.
TEMPLATES = (
    "{attribute}:{value}", "{attribute}={value}", '"{attribute}" is "{value}".', "({attribute}){value}",
    "<{attribute}>{value}", "{attribute};{value}", "[{attribute}]{value}",
)  # fmt: skip
FIGURES = {"country": ("population", "area", "phone"), "city": ("population", "latitude", "longitude")}
# Shares of countries and cities with a second page, of things with a stale copy, of files that have lost a line (ours).
FIGURES_SHARE, STALE_SHARE, BROKEN_SHARE = 0.25, 0.2, 0.3
NOTE_CHARACTERS = 200
PART_PLACES = 20  # lines of a gazetteer's part (ours: about two windows of the smallest size)
FILE_PLACES = 40  # lines of a country's file: its most populous places (ours)
LEAD_CHARACTERS = 44
LINK = re.compile(r"<<(.+?)>>")
CHECKSUM = 65_536
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        title: of several pages with one title, the newest is right.
        date: year and month.
        lead: what a search shows of it: its kind, and which attributes it has, never a value.
        text: lines; a link is the number of a page, a colon and its title.
        searched: what of it a search looks at. A page of which nothing is searched is found by a link.
    """

    title: str
    date: str
    lead: str
    text: str
    searched: Literal["all", "title", "nothing"] = "all"


@dataclass(frozen=True)
class Library:
    """All pages by number, the number of the newest page of each title, and all files by name."""

    pages: Mapping[int, Page]
    newest: Mapping[str, int]
    files: Mapping[str, str]


def checksum(text: str) -> int:
    """What a page tells of a file: the sum of its bytes modulo ``CHECKSUM``, which a program of one line computes."""
    return sum(text.encode()) % CHECKSUM


def stated(lines: Iterable[str]) -> dict[str, str]:
    """The values that lines of a page state, by attribute, whatever their template."""
    found: dict[str, str] = {}
    for line in lines:
        for template in _READ:
            if match := template.fullmatch(line):
                found.setdefault(match["attribute"], match["value"])
                break
    return found


def _pattern(template: str) -> re.Pattern[str]:
    """What matches the lines of a template."""
    before, between, after = (re.escape(part) for part in re.split(r"\{attribute\}|\{value\}", template))
    return re.compile(f"{before}(?P<attribute>[^:|]+?){between}(?P<value>.+){after}")


_READ = [_pattern(template) for template in reversed(TEMPLATES)]


def links(text: str) -> list[tuple[int, str]]:
    """The links of a line: (number, title)."""
    return [(int(number), title) for number, title in re.findall(r"(\d{4,6}):([^,\n|]+)", text)]


def build(facts: Facts) -> Library:
    """All pages and files of a world; a pure function of the facts."""
    drafts = [*_things(facts), *_names(facts), *_gazetteers(facts)]
    files, told = _files(facts)
    drafts += told
    order = np.random.default_rng(len(drafts)).permutation(len(drafts)) + 1000
    newest: dict[str, int] = {}
    for number, draft in zip(order.tolist(), drafts, strict=True):
        if draft.title not in newest or draft.date > drafts[_place(order, newest[draft.title])].date:
            newest[draft.title] = number

    def linked(match: re.Match[str]) -> str:
        return f"{newest[match[1]]}:{match[1]}"

    pages = {
        number: Page(draft.title, draft.date, draft.lead, LINK.sub(linked, draft.text), draft.searched)
        for number, draft in zip(order.tolist(), drafts, strict=True)
    }
    return Library(dict(sorted(pages.items())), newest, files)


def _place(order: np.ndarray, number: int) -> int:
    return int(np.flatnonzero(order == number)[0])


def template_of(title: str, split: str) -> str:
    """How the page of a title states its values."""
    if split == "eval" and chance("held-out template", title) < 0.5:
        return TEMPLATES[-1]
    return TEMPLATES[int(chance("template", title) * (len(TEMPLATES) - 1))]


def _date(title: str, years: range) -> str:
    month = int(chance("month", title) * 12 * len(years))
    return f"{years[month // 12]}-{month % 12 + 1:02d}"


NOW, THEN = range(2025, 2026), range(2014, 2021)


def _lead(kind: str, attributes: Iterable[str]) -> str:
    lead = f"{kind}:{','.join(attributes)}"
    return lead if len(lead) <= LEAD_CHARACTERS else lead[: lead.rindex(",", 0, LEAD_CHARACTERS)]


def _things(facts: Facts) -> Iterator[Page]:
    """The newest page of each thing, its second page, and its stale copy."""
    peers: dict[str, list[Thing]] = {}
    for thing in facts.things.values():
        peers.setdefault(thing.kind, []).append(thing)
    for thing in facts.things.values():
        apart = FIGURES.get(thing.kind, ()) if chance("figures", thing.title) < FIGURES_SHARE else ()
        figures = {key: value for key, value in thing.attributes.items() if key in apart}
        main = {key: value for key, value in thing.attributes.items() if key not in apart}
        second = f"{thing.title} (figures)" if figures else ""
        yield _page(thing, main, _date(thing.title, NOW), second)
        if figures:
            template = template_of(thing.title, thing.split)
            lines = [template.format(attribute=key, value=value) for key, value in figures.items()]
            yield Page(second, _date(second, NOW), _lead("figures", figures), "\n".join(lines))
        if chance("stale", thing.title) < STALE_SHARE:
            yield _page(thing, _untrue(thing, peers[thing.kind]), _date(thing.title, THEN), "")


def _page(thing: Thing, values: Mapping[str, str], date: str, second: str) -> Page:
    template = template_of(thing.title, thing.split)
    keys = sorted(values, key=lambda key: chance(key, thing.title))
    lines = [template.format(attribute=key, value=values[key]) for key in keys]
    whole = len(thing.note) <= NOTE_CHARACTERS
    note = [thing.note if whole else thing.note[:NOTE_CHARACTERS].rpartition(" ")[0]] if thing.note else []
    lines = [*note, *lines] if chance("note", thing.title) < 0.5 else [*lines, *note]
    lines += [f"{relation}:" + ", ".join(f"<<{title}>>" for title in to) for relation, to in thing.links.items()]
    lines += [f"more:<<{second}>>"] if second else []
    return Page(thing.title, date, _lead(thing.kind, keys), "\n".join(lines))


def _untrue(thing: Thing, peers: list[Thing]) -> dict[str, str]:
    """The values of a stale copy: about half of them, and at least one, are not what is true."""
    values = thing.attributes
    changed = {key for key in values if chance(f"stale {key}", thing.title) < 0.5} or {next(iter(values))}
    return {key: _other(thing, key, peers) if key in changed else value for key, value in values.items()}


def _other(thing: Thing, key: str, peers: list[Thing]) -> str:
    value = thing.attributes[key]
    if _NUMBER.fullmatch(value) and "." not in value and int(value) >= 1000:
        return str(round(int(value) * (0.7 + 0.25 * chance("scale", thing.title))))
    start = int(chance(f"other {key}", thing.title) * len(peers))
    others = (peer.attributes.get(key, value) for peer in peers[start:] + peers[:start])
    return next(other for other in others if other != value)


def _names(facts: Facts) -> Iterator[Page]:
    """A page for each name that several things share."""
    shared: dict[str, list[str]] = {}
    for thing in facts.things.values():
        shared.setdefault(thing.name, []).append(thing.title)
    for name, titles in shared.items():
        if len(titles) > 1:
            text = "means:" + ", ".join(f"<<{title}>>" for title in sorted(titles))
            yield Page(names_title(name), _date(names_title(name), NOW), "several things", text)


def names_title(name: str) -> str:
    """The title of the page that lists all things of a name; the name comes first, as in every title."""
    return f"{name} (name)"


def gazetteer_title(country: str, part: int = 0) -> str:
    """The title of a part of a gazetteer; without ``part``, of the page that lists its parts."""
    return f"{country} (gazetteer)" + (f", part {part}" if part else "")


def parts(places: tuple[Place, ...]) -> list[tuple[Place, ...]]:
    """The parts of a gazetteer; the last places, too few for a part, are left out."""
    return [places[start : start + PART_PLACES] for start in range(0, len(places) - PART_PLACES + 1, PART_PLACES)]


def _gazetteers(facts: Facts) -> Iterator[Page]:
    for country, places in facts.places.items():
        cut = parts(places)
        if len(cut) < 2:
            continue
        title = gazetteer_title(country)
        titles = [gazetteer_title(country, number) for number in range(1, len(cut) + 1)]
        listed = "\n".join(f"<<{each}>>" for each in titles)
        yield Page(title, _date(title, NOW), f"places, parts 1 to {len(cut)}", listed, "title")
        for each, lines in zip(titles, cut, strict=True):
            text = "\n".join(f"{place.name}|{place.people}" for place in lines)
            yield Page(each, _date(title, NOW), "places and their population", text, "nothing")


def file_title(country: str) -> str:
    """The title of the page that tells the files of a country."""
    return f"{country} (city file)"


def file_places(places: tuple[Place, ...]) -> tuple[Place, ...]:
    """The places of a country's file, in alphabetical order."""
    most = sorted(places, key=lambda place: (-place.people, place.name))[:FILE_PLACES]
    return tuple(sorted(most, key=lambda place: place.name))


def _files(facts: Facts) -> tuple[dict[str, str], list[Page]]:
    """The content of every file, and the pages that tell their names."""
    files: dict[str, str] = {}
    told: list[Page] = []
    for country, places in facts.places.items():
        if len(places) < PART_PLACES:
            continue
        title = file_title(country)
        lines = ["name,people", *(f"{place.name},{place.people}" for place in file_places(places))]
        content = "\n".join(lines)
        most = max(file_places(places), key=lambda place: place.people)
        lost = f"{most.name},{most.people}" if chance("broken", title) < BROKEN_SHARE else ""
        names = [f"f{int(chance(each, title) * 9000) + 1000}-{len(told)}.csv" for each in ("file", "mirror")]
        names = [names[0], names[1].replace(".csv", "m.csv")]
        files[names[0]] = "\n".join(line for line in lines if line != lost)
        files[names[1]] = content
        values = {"file": names[0], "mirror": names[1], "sum": str(checksum(content))}
        template = template_of(title, facts.things[country].split)
        text = "\n".join(template.format(attribute=key, value=value) for key, value in values.items())
        told.append(Page(title, _date(title, NOW), "a file, its mirror, its sum", text))
    return files, told
