"""Rewards of tables that a search has filled (source: WideSearch, arXiv 2508.07999; the pairs: ours)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from model.rl.rewards.texts import normalise
from model.rl.rewards.verdict import Verdict, f1


def parse_table(text: str) -> dict[str, str]:
    """Lines ``item: value`` as a dictionary of normalised strings; other lines are ignored, the last repeat counts."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {normalise(item): normalise(value) for item, value in pairs}


def table_f1(response: str, answer: Any) -> Verdict:
    """Wide search: F1 over (item, value) pairs. ``answer`` is {"item": "value"}."""
    predicted = parse_table(response)
    truth = {normalise(item): normalise(str(value)) for item, value in answer.items()}
    hits = sum(truth.get(item) == value for item, value in predicted.items())
    return f1(hits, len(predicted), len(truth))


def _rows(text: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Lines ``key|value|...`` as rows of normalised cells by their first cell, the key; the first row of a key counts.

    A line may begin and end with ``|``, as in Markdown. A head with the names of the columns and a rule of dashes are
    no rows. Figures lose the commas between their digits.
    """
    head = [normalise(column) for column in columns]
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [_cell(cell) for cell in line.strip().strip("|").split("|")]
        if "|" in line and cells != head and any(set(cell) - set("-: ") for cell in cells):
            rows.setdefault(cells[0], cells)
    return rows


def _cell(text: str) -> str:
    cell = normalise(text)
    return cell.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", cell) else cell


def _table_f1(response: str, answer: Any, whole_rows: bool) -> Verdict:
    columns = len(answer["columns"])
    predicted, truth = _rows(response, answer["columns"]), {}
    for row in answer["rows"]:
        truth[_cell(str(row[0]))] = [_cell(str(cell)) for cell in row]
    hits = 0
    for key, row in truth.items():
        found = predicted.get(key, [])
        right = sum(mine == other for mine, other in zip(row, found, strict=False))
        right = right if len(found) <= columns else 0
        hits += right == columns if whole_rows else right
    units = 1 if whole_rows else columns
    return f1(hits, units * len(predicted), units * len(truth))


def item_f1(response: str, answer: Any) -> Verdict:
    """Wide search, by cells: F1 over the cells of a table whose rows are matched by their key, the first cell.

    As WideSearch scores items (arXiv 2508.07999, and its published evaluation): the key of a matched row is a right
    cell too, every row counts as many cells as there are columns, and of several rows with one key the first is taken.
    Cells are compared as normalised texts, where WideSearch also has a judge for free text.

    Args:
        response: a line ``key|value|...`` a row.
        answer: ``{"columns": [names], "rows": [[key, value, ...], ...]}``.
    """
    return _table_f1(response, answer, whole_rows=False)


def row_f1(response: str, answer: Any) -> Verdict:
    """Wide search, by rows: as `item_f1`, but a row counts once, and only if all of its cells are right."""
    return _table_f1(response, answer, whole_rows=True)
