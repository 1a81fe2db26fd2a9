"""More wordings of each kind's question (source: ours).

A small model learns wordings by heart: it misses most problems in one that it has never seen
(``tests/benchmarks/wordings.py`` measures it). It answers none where the held-out wording has words that no other one
of its kind has, so these have all of them.
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
        "If you take {b} from {a} as often as you can, what is left?",
        "Take {b} from {a} as often as you can: what is left?",
        "As often as you can, take {b} from {a}. How much is left?",
        "What is left of {a} if {b} is taken as often as it can be?",
    ),
    "change": (
        "Buy {count} books at {price} with {paid}. How much is left?",
        "You pay {paid} for {count} cups at {price} each. What comes back?",
        "{count} rides cost {price} each. What is left of {paid}?", "Of {paid}, spend {count} * {price}. What remains?",
        "With {paid} you buy {count} bags, each {price}. How much do you keep?",
        "Each hat is {price}. Take {count} and pay {paid}: what remains?",
        "{paid} is paid for {count} things of {price} each. What is given back?",
        "From {paid}, pay for {count} bags at {price}. What is left?",
        "Pay {count} times {price} from {paid}. What remains?",
        "{count} times {price} is paid from {paid}. How much do you keep?",
    ),
    "sort": (
        "Sort these, the least first: {numbers}", "Put {numbers} in order, from small to large.",
        "In order, please: {numbers}",
        "{numbers}: sort them upwards.", "Write in growing order: {numbers}", "List from small to large: {numbers}",
        "What is the order of {numbers}, the least first?",
        "Write {numbers} from the least to the largest.", "From least to largest: {numbers}",
        "Order these, the largest at the end: {numbers}",
    ),
    "even_sum": (
        "Take the even numbers and sum them: {numbers}", "Of {numbers}, add the even ones.",
        "{numbers}: what is the sum of the even ones?",
        "Find the sum of all even numbers: {numbers}", "Add the even numbers of {numbers}.",
        "How much are the even ones together? {numbers}",
        "Which sum have the even numbers? {numbers}",
        "Add the numbers that are not odd: {numbers}", "Without the odd ones, what is the sum of the rest? {numbers}",
        "Leave out what is odd. Sum the rest: {numbers}",
        "{numbers}: leave the odd numbers out and sum the even ones.",
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
        'How many "{letter}" do you see in "{word}"?', 'In "{word}", count each "{letter}" that you see.',
        'Look at "{word}": how many times is there "{letter}"?',
    ),
    "reverse": (
        'Turn "{word}" around.', 'What is "{word}" backwards?', 'Read "{word}" from the end.',
        'Give "{word}" in reverse.',
        '"{word}", reversed?', 'Start with the last letter: "{word}".', 'Tell "{word}" backwards.',
        'Spell "{word}" backwards.', 'Write "{word}" from its last letter to its first.',
        '"{word}": spell it from the end.',
    ),
    "order": (
        "{facts} So who is the {which}?", "Find the {which}. {facts}", "{facts} Name the {which}.",
        "{facts} The {which} is who?",
        "Tell me who is the {which}: {facts}", "{facts} Find out who is the {which}.", "Name the {which}: {facts}",
        "Which of them is the {which}? {facts}", "{facts} Of them, who is the {which}?",
        "{facts} Which one is the {which}?",
    ),
    "weekday": (
        "It is {day}. Which day comes in {days} days?", "{days} days from {day}: which day?",
        "Start at {day} and go {days} days on. Which day?",
        "On {day} you wait {days} days. Which day is it then?", "Name the day {days} days after {day}.",
        "If today is {day}, what is it in {days} days?", "{day} plus {days} days?",
        "From {day}, count {days} days. Which day is it?", "Count on from {day}: what day is it after {days} days?",
        "Count {days} days after {day}. Which day comes?",
    ),
    "clock": (
        "{later} minutes after {time}: what time?", "At {time} you wait {later} minutes. What time is it?",
        "What time is {time} plus {later} minutes?",
        "A train leaves at {time} and goes for {later} minutes. When does it stop?",
        "The clock says {time}. And in {later} minutes?",
        "Find the time {later} minutes after {time}.", "{time} and {later} minutes later?",
        "Which time is it {later} minutes after {time}?", "It is {later} minutes past {time}: which time is that?",
        "{later} minutes go past from {time}. Which time is it?",
    ),
}  # fmt: skip
"""By the name of the kind."""
