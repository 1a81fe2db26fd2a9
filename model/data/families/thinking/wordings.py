"""More wordings of each kind's question, for the families that RL practises on (source: ours).

A small model learns wordings by heart: it misses most problems in one that it has never seen. These make that a little
better (``tests/benchmarks/wordings.py`` measures it). What stays hard is a wording with words of no other one of its
kind.
"""

from __future__ import annotations

MORE: dict[str, tuple[str, ...]] = {
    "add": (
        "Sum: {sum}", "Find {sum}.", "How much is {sum}?", "Tell me {sum}.", "What does {sum} make?",
        "Compute {sum}, please.",
        "The sum {sum} is what?",
    ),
    "multiply": (
        "Find {a} * {b}.", "How much is {a} times {b}?", "Compute {a} * {b}, please.", "What does {a} * {b} make?",
        "{a} * {b} = ?", "Take {a} {b} times: how much?", "The product of {a} and {b}?",
    ),
    "remainder": (
        "Find the remainder of {a} / {b}.", "{a} divided by {b} leaves what?", "Work out {a} mod {b}.",
        "Which rest has {a} / {b}?", "How much remains of {a} after division by {b}?", "{a} mod {b} = ?",
        "Share {a} among {b}: how many are over?",
    ),
    "change": (
        "Buy {count} books at {price} with {paid}. How much is left?",
        "You pay {paid} for {count} cups at {price} each. What comes back?",
        "{count} rides cost {price} each. What is left of {paid}?", "Of {paid}, spend {count} * {price}. What remains?",
        "With {paid} you buy {count} bags, each {price}. How much do you keep?",
        "Each hat is {price}. Take {count} and pay {paid}: what remains?",
        "{paid} is paid for {count} things of {price} each. What is given back?",
    ),
    "sort": (
        "Sort these, the least first: {numbers}", "Put {numbers} in order, from small to large.",
        "In order, please: {numbers}",
        "{numbers}: sort them upwards.", "Write in growing order: {numbers}", "List from small to large: {numbers}",
        "What is the order of {numbers}, the least first?",
    ),
    "even_sum": (
        "Take the even numbers and sum them: {numbers}", "Of {numbers}, add the even ones.",
        "{numbers}: what is the sum of the even ones?",
        "Find the sum of all even numbers: {numbers}", "Add the even numbers of {numbers}.",
        "How much are the even ones together? {numbers}",
        "Which sum have the even numbers? {numbers}",
    ),
    "spread": (
        "Find the largest minus the least: {numbers}", "{numbers}: how wide is the range?",
        "How much larger is the largest than the least? {numbers}",
        "Tell the range of {numbers}.", "What is the difference of largest and least? {numbers}",
        "Of {numbers}, take largest minus least.",
        "The range, please: {numbers}",
    ),
    "count_letter": (
        '"{word}": how many "{letter}"?', 'How many times does "{word}" have "{letter}"?',
        'Find how often "{letter}" stands in "{word}".',
        'Tell how many "{letter}" there are in "{word}".', '"{letter}" is how often in "{word}"?',
        'Take "{word}" and count each "{letter}".',
        'What is the number of "{letter}" in "{word}"?',
    ),
    "reverse": (
        'Turn "{word}" around.', 'What is "{word}" backwards?', 'Read "{word}" from the end.',
        'Give "{word}" in reverse.',
        '"{word}", reversed?', 'Start with the last letter: "{word}".', 'Tell "{word}" backwards.',
    ),
    "order": (
        "{facts} So who is the {which}?", "Find the {which}. {facts}", "{facts} Name the {which}.",
        "{facts} The {which} is who?",
        "Tell me who is the {which}: {facts}", "{facts} Find out who is the {which}.", "Name the {which}: {facts}",
    ),
    "weekday": (
        "It is {day}. Which day comes in {days} days?", "{days} days from {day}: which day?",
        "Start at {day} and go {days} days on. Which day?",
        "On {day} you wait {days} days. Which day is it then?", "Name the day {days} days after {day}.",
        "If today is {day}, what is it in {days} days?", "{day} plus {days} days?",
    ),
    "clock": (
        "{later} minutes after {time}: what time?", "At {time} you wait {later} minutes. What time is it?",
        "What time is {time} plus {later} minutes?",
        "A train leaves at {time} and goes for {later} minutes. When does it stop?",
        "The clock says {time}. And in {later} minutes?",
        "Find the time {later} minutes after {time}.", "{time} and {later} minutes later?",
    ),
}  # fmt: skip
"""By the name of the kind."""
