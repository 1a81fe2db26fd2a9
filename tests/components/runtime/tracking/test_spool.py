"""A spool keeps what is not sent, sends nothing twice, and belongs to one process at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.runtime.tracking.spool import TORN, Spool


def test_a_restart_goes_on_after_what_was_sent(tmp_path: Path) -> None:
    first = Spool(tmp_path / "parl.jsonl")
    first.append({"kind": "a"})
    first.append({"kind": "b"})
    (_, after_a), _ = first.unsent()
    first.mark(after_a)
    assert not first.done and not first.close()
    second = Spool(tmp_path / "parl.jsonl")
    second.append({"kind": "c"})
    assert [record["kind"] for record, _ in second.unsent()] == ["b", "c"]
    assert [record["kind"] for record in second.records()] == ["a", "b", "c"]
    second.mark([offset for _, offset in second.unsent()][-1])
    assert second.done and second.close()
    assert list(tmp_path.iterdir()) == [], "what is sent is removed"


def test_a_line_that_a_killed_process_tore_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "parl.jsonl").write_text('{"kind": "a"}\n{"kind": "b')
    spool = Spool(tmp_path / "parl.jsonl")
    spool.append({"kind": "c"})
    rows = list(spool.unsent())
    assert [record for record, _ in rows] == [{"kind": "a"}, TORN, {"kind": "c"}]
    spool.mark(rows[-1][1])
    assert spool.done


def test_one_process_holds_it_at_a_time(tmp_path: Path) -> None:
    held = Spool(tmp_path / "parl.jsonl")
    held.append({"kind": "a"})
    with pytest.raises(BlockingIOError):
        Spool(tmp_path / "parl.jsonl", wait=False)
    held.close()
    free = Spool(tmp_path / "parl.jsonl", wait=False)
    assert [record for record, _ in free.unsent()] == [{"kind": "a"}]


def test_what_comes_after_the_end_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "parl.jsonl")
    spool.append({"kind": "a"})
    spool.close()
    spool.append({"kind": "late"})
    assert (tmp_path / "parl.jsonl").read_text() == '{"kind": "a"}\n'
