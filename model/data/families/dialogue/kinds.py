"""The kinds of dialogues. Each is written as it would be held, and the answer is its last reply.

Names stand in quotes and values behind a colon, without a space before them: they have the same tokens everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from model.data.families.dialogue.talk import NOT_THERE, Talk

Attributes = tuple[str, ...]

ASK = ('What is the {key} of "{name}"?', 'Tell me the {key} of "{name}".', '"{name}": which {key}?',
       'I want the {key} of "{name}".', 'The {key} of "{name}" is what I need.',
       'I need the {key} of "{name}".')  # fmt: skip
AND_KEY = (
    "And the {key}?",
    "Also its {key}?",
    "The {key} too, please.",
    "What is the {key}?",
    "Now about the {key}, please.",
    "What about the {key}?",
)
GIVE_KEY = ("The {key}.", "Its {key}, please.", "I mean the {key}.", "{key}")
GIVE_NAME = ('Of "{name}".', 'Take "{name}".', '"{name}", please.', '"{name}"')
WHICH_KEY, WHICH_NAME, WHICH_BOTH, WHICH_ROWS = (
    "Which attribute?",
    "Of what?",
    "What, and which attribute?",
    "Which rows?",
)
NOT_FOUND = "Not found."


def _two(talk: Talk, keys: Attributes) -> list[str]:
    """Two different attributes that the first entity has."""
    there = [key for key in keys if key in talk.about[0].attributes]
    return [there[i] for i in talk.rng.permutation(len(there))[:2]]


def _follow_up(talk: Talk, keys: Attributes) -> None:
    """A second question about the same thing."""
    name = talk.about[0].name
    for key, wordings in zip(_two(talk, keys), (ASK, AND_KEY), strict=True):
        talk.user(wordings, key=key, name=name)
        talk.reply(*talk.search(f"{name} {key}"))


def _which_attribute(talk: Talk, keys: Attributes) -> None:
    name, key = talk.about[0].name, _two(talk, keys)[0]
    talk.user(
        ('Look up "{name}".', 'What do you know of "{name}"?', 'Search for "{name}".', 'Find "{name}" for me.'),
        name=name,
    )
    talk.reply(WHICH_KEY)
    talk.user(GIVE_KEY, key=key)
    talk.reply(*talk.search(f"{name} {key}"))


def _which_name(talk: Talk, keys: Attributes) -> None:
    name, key = talk.about[0].name, _two(talk, keys)[0]
    talk.user(("I need the {key}.", "Look up the {key}.", "What is the {key}?", "Find me the {key}."), key=key)
    talk.reply(WHICH_NAME)
    talk.user(GIVE_NAME, name=name)
    talk.reply(*talk.search(f"{name} {key}"))


def _which_both(talk: Talk, keys: Attributes) -> None:
    name, key = talk.about[0].name, _two(talk, keys)[0]
    talk.user(
        ("Look something up for me.", "Can you search for me?", "I have a question.", "Please help me find something.")
    )
    talk.reply(WHICH_BOTH)
    talk.user(ASK, key=key, name=name)
    talk.reply(*talk.search(f"{name} {key}"))


def _correction(talk: Talk, keys: Attributes) -> None:
    """The user meant another name, or another attribute."""
    (first, second), (key, other) = (entity.name for entity in talk.about[:2]), _two(talk, keys)
    talk.user(ASK, key=key, name=first)
    talk.reply(*talk.search(f"{first} {key}"))
    if talk.rng.random() < 0.5 and key in talk.about[1].attributes:
        talk.user(
            ('Sorry, I meant "{name}".', 'No, of "{name}".', 'Wrong one: "{name}", please.', 'Oh, not that: "{name}".'),
            name=second,
        )
        talk.reply(*talk.search(f"{second} {key}"))
    else:
        talk.user(
            (
                "Sorry, I meant the {key}.",
                "No, the {key}.",
                "Wrong one: the {key}, please.",
                "Oh, not that: the {key}.",
            ),
            key=other,
        )
        talk.reply(*talk.search(f"{first} {other}"))


def _not_found(talk: Talk, keys: Attributes) -> None:
    """The search finds nothing: half of the users leave it at that, the others name something else."""
    key, name = _two(talk, keys)[0], talk.about[0].name
    missing = talk.about[1].name
    for query in [query for query in talk.records if query.startswith(f"{missing.lower()} ")]:
        del talk.records[query]
    given_up = talk.rng.random() < 0.5
    if given_up:
        talk.user(GIVE_NAME, name=missing)
        talk.reply(WHICH_KEY)
        talk.user(GIVE_KEY, key=key)
    else:
        talk.user(ASK, key=key, name=missing)
    assert talk.search(f"{missing} {key}") == [NOT_THERE]
    talk.reply(NOT_FOUND)
    if not given_up:
        talk.user(('Then "{name}".', 'Try "{name}".', 'And "{name}"?', 'Well, take "{name}" then.'), name=name)
        talk.reply(*talk.search(f"{name} {key}"))


def _total(talk: Talk, keys: Attributes) -> None:
    """A sum of two searched numbers, then their difference, which needs no other search."""
    a, b = (entity.name for entity in talk.about[:2])
    fields = {"key": keys[0], "a": a, "b": b}
    talk.user(('Sum the {key} of "{a}" and "{b}".', 'What {key} have "{a}" and "{b}" together?',
               'Add the {key} of "{a}" to that of "{b}".', 'Total {key} of "{a}" and "{b}"?'), **fields)  # fmt: skip
    x, y = talk.search(f"{a} {keys[0]}", f"{b} {keys[0]}")
    talk.reply(talk.run(f"print({x} + {y})"))
    talk.user(("And the difference?", "How far are they apart?", "Now the difference.", "By how much do they differ?"))
    talk.reply(talk.run(f"print(abs({x} - {y}))"))


def _compare(talk: Talk, keys: Attributes) -> None:
    a, b = (entity.name for entity in talk.about[:2])
    talk.user(('Which has the larger {key}, "{a}" or "{b}"?', 'Compare the {key} of "{a}" and "{b}": which is larger?',
               '"{a}" or "{b}": which has more {key}?', 'Larger {key}: "{a}" or "{b}"?'),
              key=keys[0], a=a, b=b)  # fmt: skip
    x, y = talk.search(f"{a} {keys[0]}", f"{b} {keys[0]}")
    talk.reply(a if int(x) >= int(y) else b)
    talk.user(("By how much?", "How much larger?", "And by what amount?", "What is the difference?"))
    talk.reply(talk.run(f"print({max(int(x), int(y))} - {min(int(x), int(y))})"))


def _unit(talk: Talk, keys: Attributes) -> None:
    """A number, then in another unit."""
    name, unit = talk.about[0].name, (10, 100, 1000)[int(talk.rng.integers(3))]
    talk.user(ASK, key=keys[0], name=name)
    (x,) = talk.search(f"{name} {keys[0]}")
    talk.reply(x)
    talk.user(("In units of {unit}, rounded down.", "Give it in steps of {unit}, rounded down.",
               "Rounded down, how many times {unit}?", "Divide by {unit} and round down."), unit=unit)  # fmt: skip
    talk.reply(talk.run(f"print({x} // {unit})"))


def _which_rows(talk: Talk, keys: Attributes) -> None:
    """A table in the question; the rows are missing."""
    values = [entity.attributes[keys[0]] for entity in talk.about]
    table = "\n".join(f"{number}:{entity.name}:{value}"
                      for number, (entity, value) in enumerate(zip(talk.about, values, strict=True), 1))  # fmt: skip
    word, function = (("Sum", "sum"), ("Largest", "max"), ("Least", "min"))[int(talk.rng.integers(3))]
    talk.user(("{word} of some {key}:\n{table}", "{word} {key} of rows here:\n{table}",
               "{table}\n{word} of some of these?", "{table}\n{word} {key}, but not of all."),
              word=word, key=keys[0], table=table)  # fmt: skip
    talk.reply(WHICH_ROWS)
    low = int(talk.rng.integers(1, len(values)))
    high = int(talk.rng.integers(low + 1, len(values) + 1))
    talk.user(
        ("Rows {low} to {high}.", "{low} to {high}, please.", "From row {low} to row {high}.", "{low}-{high}"),
        low=low,
        high=high,
    )
    talk.reply(talk.run(f"print({function}([{', '.join(values[low - 1 : high])}]))"))


# Name -> how it is held, how many entities it is about, and whether it needs an attribute that is a number.
KINDS: dict[str, tuple[Callable[[Talk, Attributes], None], int, bool]] = {
    "follow_up": (_follow_up, 1, False),
    "which_attribute": (_which_attribute, 1, False),
    "which_name": (_which_name, 1, False),
    "which_both": (_which_both, 1, False),
    "correction": (_correction, 2, False),
    "not_found": (_not_found, 2, False),
    "total": (_total, 2, True),
    "compare": (_compare, 2, True),
    "unit": (_unit, 1, True),
    "which_rows": (_which_rows, 4, True),
}
