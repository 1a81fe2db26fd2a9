"""Problems with words, names, days and times. Every step is computed from the one before."""

from __future__ import annotations

import numpy as np

from model.data.families.entities import entities
from model.data.families.thinking.problem import Kind, Problem
from model.data.samples.sample import Split

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORD_LETTERS = range(4, 10)
NAMES = (
    "Ann",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Nora",
    "Otto",
    "Pia",
)
# (than, superlative of the first, superlative of the last)
ORDERS = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))


def _word(rng: np.random.Generator, split: Split) -> str:
    """A city's name in small letters."""
    pool = entities("city", split)
    while True:
        word = pool[int(rng.integers(len(pool)))].name.lower()
        if len(word) in WORD_LETTERS and word.isalpha():
            return word


def _draw_count(rng: np.random.Generator, split: Split) -> Problem:
    word = _word(rng, split)
    letter = word[int(rng.integers(len(word)))]
    places = [str(number) for number, each in enumerate(word, 1) if each == letter]
    count, long = 0, []
    for each in word:
        count += each == letter
        long.append(f"{each}:{count}")
    short = f"{letter} at {' '.join(places)}:{count}"
    return Problem({"word": word, "letter": letter}, word, short, tuple(long), str(count))


COUNT = Kind(
    "count_letter",
    (
        '"{word}": how many "{letter}"?', 'How many times does "{word}" have "{letter}"?',
        'Find how often "{letter}" stands in "{word}".', 'Tell how many "{letter}" there are in "{word}".',
        '"{letter}" is how often in "{word}"?', 'Take "{word}" and count each "{letter}".',
        'What is the number of "{letter}" in "{word}"?', 'How many "{letter}" do you see in "{word}"?',
        'In "{word}", count each "{letter}" that you see.', 'Look at "{word}": how many times is there "{letter}"?',
        'How often is "{letter}" in "{word}"?', 'Count "{letter}" in "{word}".', 'How many "{letter}" has "{word}"?',
        'In "{word}", how many times do you see "{letter}"?',
    ),
    _draw_count,
)  # fmt: skip


def _draw_reverse(rng: np.random.Generator, split: Split) -> Problem:
    word = _word(rng, split)
    written, long = "", []
    for letter in reversed(word):
        written += letter
        long.append(f"{letter}:{written}")
    return Problem({"word": word}, word, f"{' '.join(written)}:{written}", tuple(long), written)


REVERSE = Kind(
    "reverse",
    (
        'Turn "{word}" around.', 'What is "{word}" backwards?', 'Read "{word}" from the end.',
        'Give "{word}" in reverse.', '"{word}", reversed?', 'Start with the last letter: "{word}".',
        'Tell "{word}" backwards.', 'Spell "{word}" backwards.', 'Write "{word}" from its last letter to its first.',
        '"{word}": spell it from the end.', 'Write "{word}" backwards.', 'Reverse "{word}".',
        '"{word}" from the last letter to the first?', 'Spell "{word}" from its end.',
    ),
    _draw_reverse,
)  # fmt: skip


def _draw_order(rng: np.random.Generator, split: Split) -> Problem:
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[: int(rng.integers(3, 5))]]
    than, most, least = ORDERS[int(rng.integers(len(ORDERS)))]
    first = bool(rng.integers(2))
    pairs = list(zip(names, names[1:], strict=False))
    said = [pairs[i] for i in rng.permutation(len(pairs))]
    facts = " ".join(f"{a} is {than} than {b}." for a, b in said)
    beaten_by = {b: a for a, b in pairs} if first else dict(pairs)
    steps, asked = [], [names[i] for i in rng.permutation(len(names))]
    found = ""
    for name in asked:
        other = beaten_by.get(name)
        if other is None:
            found = name
            steps.append(f"{name}: none is {than}" if first else f"{name}: {than} than none")
        else:
            steps.append(f"{name}: {other} is {than}" if first else f"{name}: {than} than {other}")
    steps.append(f"so:{found}")
    chain = ">".join(names)
    fields = {"facts": facts, "which": most if first else least}
    operands = f"{than} {first} {' '.join(names)}"
    return Problem(fields, operands, f"{chain}, {'first' if first else 'last'}:{found}", tuple(steps), found)


ORDER = Kind(
    "order",
    (
        "{facts} So who is the {which}?", "Find the {which}. {facts}", "{facts} Name the {which}.",
        "{facts} The {which} is who?", "Tell me who is the {which}: {facts}", "{facts} Find out who is the {which}.",
        "Name the {which}: {facts}", "Which of them is the {which}? {facts}", "{facts} Of them, who is the {which}?",
        "{facts} Which one is the {which}?", "{facts} Who is the {which}?", "{facts} Tell the {which}.",
        "Who is the {which}? {facts}", "{facts} Which of them is the {which}?",
    ),
    _draw_order,
)  # fmt: skip


def _draw_weekday(rng: np.random.Generator, split: Split) -> Problem:
    start, ahead = int(rng.integers(7)), int(rng.integers(3, 60))
    weeks, days = divmod(ahead, 7)
    end = DAYS[(start + days) % 7]
    long = [f"7*{weeks}={7 * weeks}, {ahead}-{7 * weeks}={days}", f"0:{DAYS[start]}"]
    long += [f"{number}:{DAYS[(start + number) % 7]}" for number in range(1, days + 1)]
    short = f"{ahead}-{7 * weeks}={days}, {DAYS[start]}+{days}:{end}"
    return Problem({"day": DAYS[start], "days": ahead}, f"{DAYS[start]} {ahead}", short, tuple(long), end)


WEEKDAY = Kind(
    "weekday",
    (
        "It is {day}. Which day comes in {days} days?", "{days} days from {day}: which day?",
        "Start at {day} and go {days} days on. Which day?", "On {day} you wait {days} days. Which day is it then?",
        "Name the day {days} days after {day}.", "If today is {day}, what is it in {days} days?",
        "{day} plus {days} days?", "From {day}, count {days} days. Which day is it?",
        "Count on from {day}: what day is it after {days} days?", "Count {days} days after {day}. Which day comes?",
        "Today is {day}. Which day is it in {days} days?", "It is {day}. Name the day {days} days later.",
        "Which day comes {days} days after {day}?", "Count {days} days on from {day}: which day is it?",
    ),
    _draw_weekday,
)  # fmt: skip


def _draw_clock(rng: np.random.Generator, split: Split) -> Problem:
    hour, minute, later = int(rng.integers(1, 21)), int(rng.integers(60)), int(rng.integers(5, 180))
    total, end = minute + later, hour
    short, long = f"{minute}+{later}={total}", [f"{hour} h, {minute} min", f"{minute}+{later}={total}"]
    while total >= 60:
        long += [f"{total}-60={total - 60}", f"{end}+1={end + 1}"]
        total, end = total - 60, end + 1
    if end > hour:
        short = f"{minute + later}-{60 * (end - hour)}={total}"
    answer = f"{end}:{total:02d}"
    fields = {"time": f"{hour}:{minute:02d}", "later": later}
    return Problem(fields, f"{hour} {minute} {later}", f"{short}, so:{answer}", (*long, f"so:{answer}"), answer)


CLOCK = Kind(
    "clock",
    (
        "{later} minutes after {time}: what time?", "At {time} you wait {later} minutes. What time is it?",
        "What time is {time} plus {later} minutes?",
        "A train leaves at {time} and goes for {later} minutes. When does it stop?",
        "The clock says {time}. And in {later} minutes?", "Find the time {later} minutes after {time}.",
        "{time} and {later} minutes later?", "Which time is it {later} minutes after {time}?",
        "It is {later} minutes past {time}: which time is that?",
        "{later} minutes go past from {time}. Which time is it?", "It is {time}. What time is it in {later} minutes?",
        "Add {later} minutes to {time}.", "A film starts at {time} and takes {later} minutes. When does it end?",
        "Which time is {later} minutes past {time}?",
    ),
    _draw_clock,
)  # fmt: skip

KINDS = (COUNT, REVERSE, ORDER, WEEKDAY, CLOCK)
