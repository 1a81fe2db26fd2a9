from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http_server import Handler, serving

AUDIT = Path(__file__).parents[2] / ".ci" / "audit.py"


class Database(Handler):
    """The vulnerability database's protocol with one entry: anything called ``leaky`` is vulnerable before 2.0."""

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        answer = {}
        if asked["package"]["name"] == "leaky":
            events = [{"introduced": "0"}, {"fixed": "2.0"}]
            affected = {"package": asked["package"], "ranges": [{"type": "ECOSYSTEM", "events": events}]}
            answer = {"vulns": [{"id": "TEST-1", "summary": "it leaks", "affected": [affected]}]}
        self.reply(200, answer)


@pytest.fixture
def database() -> Iterator[str]:
    with serving(Database) as address:
        yield f"{address}/v1/query"


def audit(url: str, folder: Path, *pins: str) -> subprocess.CompletedProcess[str]:
    (folder / "pins.txt").write_text("\n".join(pins) + "\n")
    return subprocess.run(
        [sys.executable, str(AUDIT), str(folder / "pins.txt")],
        env={**os.environ, "PIP_AUDIT_OSV_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_known_vulnerability_fails_and_names_the_fixed_version(database: str, tmp_path: Path) -> None:
    done = audit(database, tmp_path, "sound==1.0", "leaky==1.5")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "audit: leaky 1.5 has TEST-1, fixed in 2.0",
        "audit: 2 packages looked up, 1 vulnerabilities known",
    ]


def test_sound_pins_pass(database: str, tmp_path: Path) -> None:
    done = audit(database, tmp_path, "sound==1.0")
    assert (done.returncode, done.stdout) == (0, "audit: 1 packages looked up, 0 vulnerabilities known\n")


def test_a_database_out_of_reach_is_said_and_does_not_fail(tmp_path: Path) -> None:
    done = audit("http://127.0.0.1:9/v1/query", tmp_path, "sound==1.0")
    assert done.returncode == 0
    assert done.stdout.startswith("audit: skipped, nothing was looked up: ")
