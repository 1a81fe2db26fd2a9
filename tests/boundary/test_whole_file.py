"""Files are written whole or not at all; what sweeps do is tested with the folder store."""

from __future__ import annotations

import os
import resource
import signal
import stat
from pathlib import Path

import pytest

from model.boundary.whole_file import part_file, write_whole


def test_a_file_is_replaced_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_whole(path, b"earlier")
    write_whole(path, b"later")
    assert path.read_bytes() == b"later" and os.listdir(path.parent) == ["state.json"]


def test_a_secret_is_its_owners_from_the_first_byte(tmp_path: Path) -> None:
    with part_file(tmp_path / "key", 0o600) as (_, part):
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
    (tmp_path / "key").write_text("open to all")
    write_whole(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, b"x" * (1 << 16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["summary.json"]
