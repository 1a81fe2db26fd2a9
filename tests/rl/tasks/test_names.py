from __future__ import annotations

import pytest

from model.boundary.errors import MoonflowError
from model.rl.tasks.names import parse_task_shares, parse_tasks, short_name, takes_all


def test_names_and_shares_are_read() -> None:
    assert parse_tasks(" a.b:Stars , c:Maze,") == ["a.b:Stars", "c:Maze"]
    shares = parse_task_shares("a.b:Stars=0.25, c:Maze = .75")
    assert shares == {"a.b:Stars": 0.25, "c:Maze": 0.75} and takes_all(shares)
    assert parse_tasks("") == [] and parse_task_shares("") == {} and not takes_all({"c:Maze": 0.9})
    assert short_name("a.b:Stars") == "Stars"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Stars", "write module:name"),
        ("a/b.py:Stars", "write module:name"),
        ("a.b:", "write module:name"),
        ("a:Stars.x", "write module:name"),
        ("a:Stars, a:Stars", "given twice"),
        ("a:Stars, b:Stars", "one name in tables"),
    ],
)
def test_a_name_of_another_form_is_one_line(text: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        parse_tasks(text)


@pytest.mark.parametrize("text", ["a:Stars", "a:Stars=", "a:Stars=0", "a:Stars=1.5", "a:Stars=-1", "a:Stars=nan"])
def test_a_wrong_share_is_one_line(text: str) -> None:
    with pytest.raises(MoonflowError, match=r"write a:Stars=0\.2"):
        parse_task_shares(text)


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(MoonflowError, match="the shares are 1.2 in sum"):
        parse_task_shares("a:Stars=0.6, a:Maze=0.6")
