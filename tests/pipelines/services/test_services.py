from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.services import Services, exported, local, stop_kept
from pipelines.services.local import service_processes
from pipelines.services.ports import choose, unix_sockets
from tests.waiting import happens

pytestmark = pytest.mark.services

OWNER = """
import sys, time
from pathlib import Path
from pipelines.services import Services
with Services.start(Path(sys.argv[1]), keep=sys.argv[2] == "keep") as services:
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
"""


def owner(run_dir: Path, mode: str) -> subprocess.Popen[str]:
    """Another process that starts services in ``run_dir``; it returns once they answer."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(run_dir), mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def listening(processes: list[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which ``processes`` listen."""
    inodes = set()
    for pid in processes:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                raw, port = columns[1].split(":")
                words = [bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


@pytest.mark.slow
def test_two_runs_side_by_side_on_loopback_with_their_own_credentials(services: Services, tmp_path: Path) -> None:
    with Services.start(tmp_path / "other") as other:
        mine, theirs = services.environment, other.environment
        assert mine["AWS_ENDPOINT_URL_S3"] != theirs["AWS_ENDPOINT_URL_S3"]
        open_store(mine).put("side", b"mine")
        open_store(theirs).put("side", b"theirs")
        assert open_store(mine).get("side") == b"mine"
        with pytest.raises(MoonflowError, match="refused"):
            open_store({**mine, "AWS_ENDPOINT_URL_S3": theirs["AWS_ENDPOINT_URL_S3"]}).get("side")
        processes = service_processes(other.run_dir)
        open_ports = listening(processes)
        assert len(open_ports) == 11 and {address for address, _ in open_ports} == {"127.0.0.1"}
        mode = stat.S_IMODE((other.run_dir / "credentials.json").stat().st_mode)
        assert mode == 0o600
        sockets = unix_sockets(json.loads((other.run_dir / "ports.json").read_text()))
        assert [path.is_socket() for path in sockets] == [True] * 7
    assert processes and service_processes(other.run_dir) == []
    assert [path.exists() for path in sockets] == [False] * 7


def test_folder_in_use_is_one_line(services: Services) -> None:
    with pytest.raises(MoonflowError, match="is in use by another moonflow run: wait for it"):
        Services.start(services.run_dir)
    open_store(services.environment).check()  # and the refused start has not ended the first one's


@pytest.mark.slow
def test_kill_9_of_the_owner_leaves_no_process_and_a_restart_keeps_the_data(tmp_path: Path) -> None:
    first = owner(tmp_path, "wait")
    ports = json.loads((tmp_path / "ports.json").read_text())
    key, secret = json.loads((tmp_path / "credentials.json").read_text()).values()
    environment = {
        "MOONFLOW_STORE": "s3://moonflow/runs",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
    }
    open_store(environment).put("kept/a", bytes(range(256)) * 40_000)
    assert len(service_processes(tmp_path)) >= 4  # supervisor, weed, mlflow and its uvicorn
    first.kill()
    first.wait()
    assert happens(lambda: service_processes(tmp_path) == [], 5), service_processes(tmp_path)

    # On other ports: the data must not depend on them.
    (tmp_path / "ports.json").unlink()
    with Services.start(tmp_path) as again:
        assert again.environment["AWS_ENDPOINT_URL_S3"] != environment["AWS_ENDPOINT_URL_S3"]
        assert open_store(again.environment).get("kept/a") == bytes(range(256)) * 40_000
        open_store(again.environment).put("kept/b", b"new")
        assert open_store(again.environment).list("kept/") == ["kept/a", "kept/b"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_owner_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    process = owner(tmp_path, "wait")
    process.send_signal(number)
    process.wait(20)
    assert happens(lambda: service_processes(tmp_path) == [], 5)


@pytest.mark.slow
def test_kill_9_of_the_supervisor_leaves_only_what_the_next_start_ends(tmp_path: Path) -> None:
    process = owner(tmp_path, "wait")
    sockets = unix_sockets(json.loads((tmp_path / "ports.json").read_text()))
    os.kill(json.loads((tmp_path / "services.json").read_text())["supervisor"], signal.SIGKILL)
    process.kill()
    process.wait()
    assert all(path.is_socket() for path in sockets)
    with Services.start(tmp_path) as again:
        open_store(again.environment).check()
    assert service_processes(tmp_path) == []
    assert not any(path.exists() for path in sockets)


@pytest.mark.slow
def test_kept_services_outlive_their_owner_until_they_are_stopped(tmp_path: Path) -> None:
    assert owner(tmp_path, "keep").wait(20) == 0
    time.sleep(1)
    page = json.loads((tmp_path / "services.json").read_text())["mlflow"]
    with urllib.request.urlopen(page, timeout=10) as answer:
        assert answer.status == 200
    assert stop_kept(tmp_path) and service_processes(tmp_path) == []
    assert not stop_kept(tmp_path)
    with Services.start(tmp_path) as again:
        assert again.environment["MLFLOW_TRACKING_URI"] == page, "the same folder keeps its addresses"


@pytest.mark.slow
def test_a_folder_of_any_name_holds_its_own_database_and_objects(tmp_path: Path) -> None:
    run_dir = tmp_path / "a,b?c#d%20 'e' \"f\" [g] ü"
    with Services.start(run_dir) as services:
        store = open_store(services.environment)
        store.put("a", b"1")
        assert store.get("a") == b"1"
    assert (run_dir / "mlflow.db").stat().st_size > 0 and list((run_dir / "store").glob("*.dat"))
    assert list(tmp_path.iterdir()) == [run_dir], "something was written next to the folder"


def test_no_key_is_in_a_log_or_in_a_file_that_others_may_read(services: Services) -> None:
    open_store(services.environment).check()
    saved = json.loads((services.run_dir / "credentials.json").read_text())
    private = (services.run_dir / "signing" / "private.pem").read_bytes()
    words = [word.encode() for word in saved.values()] + [private.splitlines()[1]]
    checked = 0
    for path in services.run_dir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
            held = [word for word in words if word in content]
            assert not held or (mode == 0o600 and path.parent.name != "logs"), path
            checked += path.parent.name == "logs"
    assert checked >= 2
    for pid in service_processes(services.run_dir):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert not any(word in line for word in words)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").touch()
    with pytest.raises(MoonflowError, match="cannot write to .*run: File exists; make it writable"):
        Services.start(tmp_path / "run")


@pytest.mark.slow
def test_a_taken_port_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blockers: list[socket.socket] = []

    def race() -> dict[str, int]:
        ports = choose()
        if not blockers:  # another program binds a port between the choice and the start
            blockers.append(socket.create_server(("127.0.0.1", ports["s3"])))
        return ports

    monkeypatch.setattr(local, "choose", race)
    with Services.start(tmp_path) as services, blockers[0] as blocker:
        assert not services.environment["AWS_ENDPOINT_URL_S3"].endswith(f":{blocker.getsockname()[1]}")


def test_a_service_that_ends_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database " * 100)
    with pytest.raises(MoonflowError, match=r"MLflow ended at its start; the last lines of .*log: .*not a database"):
        Services.start(tmp_path)
    assert service_processes(tmp_path) == []


@pytest.mark.slow
def test_one_service_that_ends_ends_both_and_the_owner_can_tell(tmp_path: Path) -> None:
    before = dict(os.environ)
    with Services.start(tmp_path) as services:
        with exported(services.environment):
            assert services.environment.items() <= os.environ.items()
        assert dict(os.environ) == before and services.alive
        server = next(
            pid for pid in service_processes(tmp_path) if b"mini" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(server, signal.SIGKILL)
        assert happens(lambda: not services.alive, 10)
    assert not services.alive and service_processes(tmp_path) == []
