"""How the world's questions are worded (source: ours).

Of each family's wordings the last is held out: only eval samples have it, in half of the cases
(``model.data.families.family.choose``). Names and attributes stand in quotes or begin a line, so that they never
follow a space: they are the same tokens in a question as on a page.
"""

from __future__ import annotations

WIDE = (
    'Find "{what}" of each:\n{items}', 'Look up "{what}":\n{items}', 'Make a table of "{what}":\n{items}',
    'List "{what}" for all of these:\n{items}', 'Which "{what}" has each of these?\n{items}',
    'I need "{what}" of:\n{items}', 'For every line below, give "{what}".\n{items}',
    '"{what}", please, of the following:\n{items}', 'Wanted: "{what}" of\n{items}',
    'What are "{what}" of these?\n{items}',
    '"{what}" are wanted of:\n{items}', 'Tell me "{what}" of:\n{items}', '"{what}" of these are wanted:\n{items}',
)  # fmt: skip
EASY = (
    'What is the "{what}" of "{title}"?', 'Tell the "{what}" of "{title}".', 'Which "{what}" has "{title}"?',
    '"{title}" has which "{what}"?', 'Look up "{title}": "{what}"?', 'I need the "{what}" of "{title}".',
    'Find "{title}" and its "{what}".', '"{title}": which "{what}"?',
)  # fmt: skip
EASY_PAGE = (
    'What is the "{what}" on page {page}?', 'Page {page}: which "{what}"?', 'Open page {page}: what is the "{what}"?',
    'Which "{what}" stands on page {page}?', 'I need the "{what}" of page {page}.',
    'On page {page}, find the "{what}".',
    'Tell the "{what}" that page {page} has.', 'Read page {page}: "{what}"?', '"{what}" is to be read off page {page}.',
    'Read off the "{what}": page {page}.', 'Read the "{what}" off page {page}.',
)  # fmt: skip
DOCUMENT = (
    '"{title}": find {what} in each of the parts\n{items}', '"{title}": {what} of these parts:\n{items}',
    'Look up {what} in "{title}", parts\n{items}', 'Which is {what} in each of these parts of "{title}"?\n{items}',
    'I need {what} of "{title}", by part:\n{items}', '{what} in these parts of "{title}":\n{items}',
)  # fmt: skip
BULK = (
    "City files: {what} in each of\n{items}", "From the city files, find {what} for\n{items}",
    "Compute {what} from the city file of each:\n{items}", "I need {what}, as the city files have it, of\n{items}",
    "For every line below, find {what} in the city file.\n{items}", "{what}, by country, from its city file:\n{items}",
    "By the city files, {what} of each:\n{items}", "{what}, by the city file of each:\n{items}",
)  # fmt: skip
DEEP = (
    '{of}, which has the {most} "{measure}"? Give its "{what}".',
    '{of}, take the one with the {most} "{measure}": "{what}"?',
    '{of}, find the one of the {most} "{measure}", and its "{what}".',
    '{of}, I need the "{what}" of that with the {most} "{measure}".',
    '{of}, what is the "{what}" of the one that has the {most} "{measure}"?',
    '"{what}" of the one with the {most} "{measure}"? {of}.',
)  # fmt: skip
NEWEST = "(newest pages; lines 1:title|name:value|...)"
NAMED = "(answer name:value)"
NOTES = (
    "Notes, in no order:\n{notes}\nPut them in order.", "{notes}\nMake the table of these notes.",
    "These came back:\n{notes}\nGive them in their order.", "Found so far:\n{notes}\nAnswer with it, in order.",
    "Put these in order:\n{notes}", "{notes}\nIn order, please.", "In order of their numbers, please:\n{notes}",
)  # fmt: skip
