"""What is asked about the world, with the true answer and the plan that finds it (source: ours).

Every draw is a question, its answer from the facts, and a `Plan` that must come to the same answer through the tools.
No question asks to work in parallel. Of each family's wordings the last is held out: only eval samples have it, in half
of the cases. The kinds of task are those of the paper's section on PARL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from model.data.families.family import choose
from model.data.families.world.agents import (
    Conversation,
    LostError,
    Part,
    Plan,
    alone,
    find,
    pages_lines,
    read,
    related,
)
from model.data.families.world.facts import Kind, Place, Thing
from model.data.families.world.index import View, world
from model.data.families.world.pages import (
    CHECKSUM,
    PART_PLACES,
    file_places,
    file_title,
    gazetteer_title,
    names_title,
    parts,
)
from model.data.families.world.wordings import BULK, DEEP, DOCUMENT, EASY, EASY_PAGE, NAMED, NEWEST, WIDE
from model.data.samples.sample import Split

READERS = ["search", "open_page"]
PROGRAMMERS = [*READERS, "download", "ipython"]
ASKED: dict[Kind, tuple[str, ...]] = {
    "country": ("capital", "currency", "population", "area", "code", "domain", "phone"),
    "city": ("population", "timezone", "latitude", "longitude"),
    "element": ("symbol", "number", "period", "block", "discovered", "density"),
    "language": ("code", "script", "countries"),
    "module": ("lines", "functions", "classes", "imports"),
}


@dataclass(frozen=True)
class Drawn:
    """A question with its truth.

    Attributes:
        answer, reward: as in ``Sample``.
        text: the answer as the reference trajectory words it.
        size: how many parts it has.
    """

    question: str
    answer: Any
    reward: str
    text: str
    source: str
    tools: list[str]
    plan: Plan
    size: int


def named(attributes: Mapping[str, str]) -> list[str]:
    """Values beside their names, as answers have them: ``area:163610``."""
    return [f"{name}:{value}" for name, value in attributes.items()]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The answer of a task that asks for a table; see ``model.rl.rewards.tables.item_f1``."""
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


def numbered(items: Sequence[str]) -> list[str]:
    """Items with how many are still to come: ``2:Chile``, then ``1:Peru``. So the last one is known by itself, and an
    agent that works through a list knows when to stop."""
    return [f"{left}:{item}" for left, item in zip(range(len(items), 0, -1), items, strict=True)]


def queries(thing: Thing, attributes: Sequence[str]) -> tuple[str, str]:
    """What a scripted agent searches for: the thing with an attribute, then with its kind."""
    return f"{thing.title}|{attributes[0]}", f"{thing.title}|{thing.kind}"


@cache
def findable(title: str, asked: tuple[str, ...], view: View) -> bool:
    """Whether these queries show the newest page of a title, and not only a stale copy."""
    try:
        return int(find(Conversation(view), title, asked)) == world().number(title)
    except LostError:
        return False


@cache
def pool(kind: Kind, attributes: tuple[str, ...], split: Split) -> list[Thing]:
    """The things of a kind that have all the attributes."""
    return [thing for thing in world().facts.of(kind, split) if set(attributes) <= set(thing.attributes)]


def draw_things(
    rng: np.random.Generator, things: Sequence[Thing], attribute: str, count: int, view: View
) -> list[Thing] | None:
    """``count`` different things that can be found; None if there are not as many."""
    found: list[Thing] = []
    for place in rng.permutation(len(things)):
        thing = things[place]
        if len(found) < count and findable(thing.title, queries(thing, (attribute,)), view):
            found.append(thing)
        if len(found) == count:
            return found
    return None


def look_up(item: str, thing: Thing, attributes: Sequence[str], talk: Conversation) -> str:
    """The line of an item, which is a thing with its number: ``1:Peru|capital:Lima|currency:Sol``."""
    _, values = read(talk, find(talk, thing.title, queries(thing, attributes)), attributes)
    return "|".join([item, *named(values)])


def wide(rng: np.random.Generator, split: Split, size: int, view: View) -> Drawn:
    """``size`` things of one kind, and one to three attributes of each."""
    while True:
        kind: Kind = ("country", "city", "element", "language", "module")[int(rng.integers(5))]
        count = min(int(rng.integers(1, 4)), len(ASKED[kind]) - 1)
        attributes = tuple(ASKED[kind][i] for i in sorted(rng.permutation(len(ASKED[kind]))[:count]))
        things = draw_things(rng, pool(kind, attributes, split), attributes[0], size, view)
        if things is not None:
            break
    items, what = numbered([thing.title for thing in things]), "|".join(attributes)
    asked = list(zip(items, things, strict=True))
    rows = [(item, *named({each: thing.attributes[each] for each in attributes})) for item, thing in asked]
    question = choose(rng, split, WIDE).format(what=what, items="\n".join(items))
    prompts = [Part(f"{item}|{what}", partial(look_up, item, thing, attributes)) for item, thing in asked]
    return Drawn(
        f"{question}\n{NEWEST}", table(["name", *attributes], rows), "item_f1", "\n".join(map("|".join, rows)),
        things[0].source, READERS, _at_once(prompts, "\n".join), size,
    )  # fmt: skip


def easy(rng: np.random.Generator, split: Split, size: int, view: View) -> Drawn:
    """One value: of a page whose number is told, which one call shows, or of a thing, which two calls show."""
    while True:
        kind: Kind = ("country", "city", "element", "language", "module")[int(rng.integers(5))]
        attribute = ASKED[kind][int(rng.integers(len(ASKED[kind])))]
        things = draw_things(rng, pool(kind, (attribute,), split), attribute, 1, view)
        if not things:
            continue
        (thing,) = things
        page = str(world().number(thing.title)) if rng.random() < 0.5 else ""
        asked = choose(rng, split, EASY_PAGE if page else EASY).format(what=attribute, title=thing.title, page=page)
        question = f"{asked} {NAMED}"
        plan = _at_once([Part(question, partial(one_value, page, thing, attribute))], "".join)
        if alone(plan, view)[0].calls <= (1 if page else 2):
            (value,) = named({attribute: thing.attributes[attribute]})
            return Drawn(question, value, "exact", value, thing.source, READERS, plan, 1)


def _at_once(given: list[Part], conclude: Callable[[list[str]], str]) -> Plan:
    """A plan whose parts are known from the question."""
    return Plan(lambda talk: given, conclude, told=len(given) > 1)


def one_value(page: str, thing: Thing, attribute: str, talk: Conversation) -> str:
    """The value on a page, or on the page of a thing if no page is told, beside its name."""
    number = page or find(talk, thing.title, queries(thing, (attribute,)))
    return named(read(talk, number, (attribute,))[1])[0]


# --- deep search: a page leads to others, of which one is to be chosen by a figure


@dataclass(frozen=True)
class Root:
    """Where a deep search begins: a page and the things that it links to."""

    title: str
    source: str
    relation: str
    branches: tuple[Thing, ...]


COMPARED: dict[str, tuple[tuple[str, ...], str]] = {
    "country": (("population", "area"), "Of the neighbours of {title}"),
    "language": (("population", "area"), "Of the countries where {title} is official"),
    "module": (("lines", "imports"), "Of the modules that {title} imports"),
    "name": (("population",), "Of the cities that are called {title}"),
}


@cache
def roots(kind: str, split: Split) -> list[Root]:
    """Pages of a kind with 2 to 16 branches; training's branches are all of training."""
    things = world().facts.things
    found: list[Root] = []
    if kind == "name":
        named: dict[str, list[Thing]] = {}
        for thing in things.values():
            named.setdefault(thing.name, []).append(thing)
        for name, group in named.items():
            mine = [thing for thing in group if thing.split == split]
            if len(group) > 1 and mine and {thing.kind for thing in group} == {"city"}:
                found.append(Root(names_title(name), mine[0].source, "means", tuple(group)))
    else:
        for thing in world().facts.of(kind, split):  # type: ignore[arg-type]
            for relation, titles in thing.links.items():
                found.append(Root(thing.title, thing.source, relation, tuple(things[each] for each in titles)))
    return [
        root
        for root in found
        if 2 <= len(root.branches) <= 16 and (split == "eval" or all(each.split == "train" for each in root.branches))
    ]


def _root_queries(kind: str, title: str) -> tuple[str, ...]:
    return (title, f"{title}|{kind}")


def deep(rng: np.random.Generator, split: Split, size: int, view: View) -> Drawn:
    """The thing with the largest or smallest figure among those that a page links to, and a value of it.

    ``size`` is the number of branches that is wanted; the draw takes the root that comes nearest to it of some.
    """
    while True:
        kinds = [kind for kind in COMPARED if roots(kind, split)]
        kind = kinds[int(rng.integers(len(kinds)))]
        measures, of = COMPARED[kind]
        measure = measures[int(rng.integers(len(measures)))]
        root = _near(rng, roots(kind, split), size)
        branch = root.branches[0].kind
        what = str(rng.choice([each for each in ASKED[branch] if each != measure]))
        if not all({measure, what} <= set(thing.attributes) for thing in root.branches):
            continue
        ordered = sorted(root.branches, key=lambda thing: float(thing.attributes[measure]))
        most = ("smallest", "largest")[int(rng.integers(2))]
        best, next_best = (ordered[0], ordered[1]) if most == "smallest" else (ordered[-1], ordered[-2])
        if best.attributes[measure] != next_best.attributes[measure] and findable(
            root.title, _root_queries(kind, root.title), view
        ):
            break
    name = root.title.removesuffix(names_title(""))
    question = choose(rng, split, DEEP).format(of=of.format(title=f'"{name}"'), most=most, measure=measure, what=what)

    def begin(talk: Conversation) -> list[Part]:
        _, lines = pages_lines(talk, find(talk, root.title, _root_queries(kind, root.title)))
        return [
            Part(f"page {number}|{measure}|{what}", partial(read_page, str(number), (measure, what)))
            for number, _ in related(lines, root.relation)
        ]

    def conclude(results: list[str]) -> str:
        rows = [result.split("|") for result in results]
        return (min if most == "smallest" else max)(rows, key=lambda row: float(row[1].removeprefix(f"{measure}:")))[2]

    (value,) = named({what: best.attributes[what]})
    return Drawn(
        f"{question[0].upper()}{question[1:]} {NAMED}", value, "exact", value, root.source, READERS,
        Plan(begin, conclude), len(root.branches),
    )  # fmt: skip


def _near(rng: np.random.Generator, some: Sequence[Root], size: int) -> Root:
    drawn = [some[i] for i in rng.integers(len(some), size=8)]
    return min(drawn, key=lambda root: abs(len(root.branches) - size))


def read_page(page: str, attributes: Sequence[str], talk: Conversation) -> str:
    """The line of the thing on a page: ``Chile|population:18729160|capital:Santiago``."""
    title, values = read(talk, page, attributes)
    return "|".join([title, *named(values)])


# --- long documents: a gazetteer in parts, of which each is longer than a small window


STATISTICS: dict[str, Callable[[Sequence[Place]], str]] = {
    "the most populous place": lambda places: max(places, key=lambda place: place.people).name,
    "the least populous place": lambda places: min(places, key=lambda place: place.people).name,
    "the number of places with over 50000 people": lambda places: str(sum(p.people > 50_000 for p in places)),
}


def document(rng: np.random.Generator, split: Split, size: int, view: View) -> Drawn:
    """What is true of each of ``size`` parts of a country's gazetteer, or of all its parts if there are fewer."""
    places = world().facts.places
    countries = [thing for thing in world().facts.of("country", split) if len(parts(places.get(thing.title, ()))) > 1]
    large = [thing for thing in countries if len(parts(places[thing.title])) >= size]
    if not large:
        large = [max(countries, key=lambda thing: len(places[thing.title]))]
    what = list(STATISTICS)[int(rng.integers(len(STATISTICS)))]
    while True:
        thing = large[int(rng.integers(len(large)))]
        cut, title = parts(places[thing.title]), gazetteer_title(thing.title)
        chosen = sorted(rng.permutation(len(cut))[:size].tolist())
        peopled = [sorted(place.people for place in cut[part]) for part in chosen]
        if all(people[0] < people[1] and people[-2] < people[-1] for people in peopled) and findable(
            title, (title,), view
        ):
            break
    rows = [(str(part + 1), STATISTICS[what](cut[part])) for part in chosen]
    items = "\n".join(numbered([row[0] for row in rows]))
    question = choose(rng, split, DOCUMENT).format(title=title, what=what, items=items)

    def begin(talk: Conversation) -> list[Part]:
        _, lines = pages_lines(talk, find(talk, title, (title,)))
        pages = {match[2]: match[1] for line in lines if (match := re.fullmatch(r"(\d+):.*, part (\d+)", line))}
        return [Part(f"page {pages[row[0]]}: {what}", partial(read_part, pages[row[0]], what)) for row in rows]

    return Drawn(
        f"{question[0].upper()}{question[1:]}\n(lines part|...)", table(["part", what], rows), "item_f1",
        "\n".join(map("|".join, rows)), thing.source, READERS, Plan(begin, "\n".join), len(rows),
    )  # fmt: skip


def read_part(page: str, what: str, talk: Conversation) -> str:
    """The line of a part of a gazetteer: ``2|Cusco``."""
    title, lines = pages_lines(talk, page)
    cells = [line.split("|") for line in lines]
    places = [Place(name, int(people), "") for name, people in cells]
    return f"{title.rpartition(' ')[2]}|{STATISTICS[what](places)}"


# --- bulk download: a file of each country, with a check


PROGRAMS = {
    "the total population": "sum(n)",
    "the largest population": "max(n)",
    "the number of cities with over 500000 people": "sum(x>500000 for x in n)",
}


def bulk(rng: np.random.Generator, split: Split, size: int, view: View) -> Drawn:
    """A figure of the city file of each of ``size`` countries; some files are broken, which their sum shows."""
    places = world().facts.places
    large = [thing for thing in world().facts.of("country", split) if len(places.get(thing.title, ())) >= PART_PLACES]
    titled = [(thing, file_title(thing.title)) for thing in large]
    countries = [thing for thing, title in titled if findable(title, (title,), view)]
    chosen = [countries[i] for i in rng.permutation(len(countries))[:size]]
    what = list(PROGRAMS)[int(rng.integers(len(PROGRAMS)))]
    rows, items = [], numbered([thing.title for thing in chosen])
    for item, thing in zip(items, chosen, strict=True):
        people = [place.people for place in file_places(places[thing.title])]
        figure = {"sum(n)": sum(people), "max(n)": max(people)}.get(PROGRAMS[what], sum(x > 500_000 for x in people))
        rows.append((item, str(figure)))
    question = choose(rng, split, BULK).format(what=what, items="\n".join(items))
    told = f"(sum of a file: bytes modulo {CHECKSUM}; lines 1:name|...)"
    prompts = [
        Part(f"{item}: {what} in its city file; check the sum (bytes modulo {CHECKSUM})",
             partial(compute, item, thing.title, what))
        for item, thing in zip(items, chosen, strict=True)
    ]  # fmt: skip
    return Drawn(
        f"{question[0].upper()}{question[1:]}\n{told}", table(["name", what], rows), "item_f1",
        "\n".join(map("|".join, rows)), chosen[0].source, PROGRAMMERS, _at_once(prompts, "\n".join), len(rows),
    )  # fmt: skip


def compute(item: str, country: str, what: str, talk: Conversation) -> str:
    """The line of an item: ``1:Peru|11870000``, from its file, or from the mirror where the file's sum is wrong."""
    title = file_title(country)
    _, told = read(talk, find(talk, title, (title,)), ("file", "mirror", "sum"))
    for name in (told["file"], told["mirror"]):
        talk.call("download", file=name)
        program = f"t=files['{name}']\nn=[int(l.split(',')[1]) for l in t.split('\\n')[1:]]\n"
        shown = talk.call("ipython", code=f"{program}print(sum(t.encode())%{CHECKSUM},{PROGRAMS[what]})")
        found, value = shown.split()
        if found == told["sum"]:
            return f"{item}|{value}"
    raise LostError(f"both files of {country} are broken")
