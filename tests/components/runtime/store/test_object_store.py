from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from components.runtime.store import s3
from components.runtime.store.object_store import NotInStore, ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.services import Services

pytestmark = pytest.mark.services


def test_objects_come_back(store: ObjectStore, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    store.put("objects/a/one", data)
    (tmp_path / "two").write_bytes(data)
    store.upload(tmp_path / "two", "objects/b/two")
    store.download("objects/b/two", tmp_path / "deep" / "copy")
    assert store.get("objects/a/one") == data == (tmp_path / "deep" / "copy").read_bytes()
    assert store.list("objects/") == ["objects/a/one", "objects/b/two"]
    assert store.folders("objects/") == ["a", "b"]
    assert store.uri("objects/a/one") == "s3://moonflow/runs/objects/a/one"
    assert store.get(store.uri("objects/a/one")) == data
    assert store.list(store.uri("objects/a/")) == [store.uri("objects/a/one")]
    store.delete("objects/a/one")
    assert not store.exists("objects/a/one") and store.exists("objects/b/two")


ODD = (
    "a#b", "a#c", "a", "a?b=c", "100%", "a%20b", "a b", "a+b", "ü-漢", "a:b@c&d", "a'b", 'a"b', "<a>", "*", "~", "{a}",
)  # fmt: skip


def test_odd_keys_are_objects_of_their_own(store: ObjectStore, tmp_path: Path) -> None:
    keys = [f"odd/{name}" for name in ODD]
    for key in keys:
        store.put(key, key.encode())
    assert store.list("odd/") == sorted(keys, key=str.encode)
    assert store.list(store.uri("odd/a#")) == [store.uri("odd/a#b"), store.uri("odd/a#c")]
    for key in keys:
        assert store.get(key) == store.get(store.uri(key)) == key.encode()
        store.download(store.uri(key), tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == key.encode() and not store.put_new(key, b"")
    store.delete(store.uri("odd/a#b"))
    assert sorted(set(keys) - set(store.list("odd/"))) == ["odd/a#b"], "a delete hit another object"


def test_stores_whose_prefixes_differ_behind_a_hash_are_two(services: Services) -> None:
    named = [{**services.environment, "MOONFLOW_STORE": f"s3://moonflow/h#{number}"} for number in (1, 2)]
    one, two = map(open_store, named)
    one.put("key", b"one")
    two.put("key", b"two")
    assert (one.get("key"), two.get("key"), one.list(), two.list("k")) == (b"one", b"two", ["key"], ["key"])


def test_keys_that_only_s3_has_are_read_and_not_taken_for_ours(services: Services, store: ObjectStore) -> None:
    theirs = boto3.client(
        "s3",
        endpoint_url=services.environment["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id=services.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=services.environment["AWS_SECRET_ACCESS_KEY"],
    )
    for key in ("runs/foreign/", "runs/foreign/a.part-1"):
        theirs.put_object(Bucket="moonflow", Key=key, Body=b"x")
    store.put("foreign/b", b"")
    assert store.list("foreign/") == ["foreign/b"]
    assert "s3://moonflow/runs/foreign/a.part-1" in store.list(store.uri("foreign/"))
    assert store.get("s3://moonflow/runs/foreign/a.part-1") == b"x"


def test_large_file_goes_up_in_parts_and_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 80
    (tmp_path / "large").write_bytes(data)
    store.upload(tmp_path / "large", "objects/large")
    store.download("objects/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_put_new_has_one_winner(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_new("objects/race", str(n).encode()), range(8)))
    assert won.count(True) == 1
    assert store.get("objects/race") == str(won.index(True)).encode()


def test_missing_object_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotInStore, match="s3://moonflow/runs/objects/none does not exist"):
        store.get("objects/none")
    with pytest.raises(NotInStore, match="objects/none"):
        store.download("objects/none", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_unset_store_and_bad_address() -> None:
    with pytest.raises(MoonflowError, match="MOONFLOW_STORE is not set"):
        open_store({})
    with pytest.raises(MoonflowError, match="'/data' is not an object-store address"):
        open_store({"MOONFLOW_STORE": "/data"})


def test_wrong_credentials_and_bucket(services: Services) -> None:
    environment = services.environment
    with pytest.raises(MoonflowError, match="refused .*check AWS_ACCESS_KEY_ID"):
        open_store({**environment, "AWS_SECRET_ACCESS_KEY": "wrong"}).check()
    with pytest.raises(MoonflowError, match="s3://absent: no such bucket"):
        open_store({**environment, "MOONFLOW_STORE": "s3://absent/runs"}).check()


@pytest.mark.parametrize("listens", [False, True], ids=["refuses", "silent"])
def test_unreachable_store_is_one_line_within_ten_seconds(services: Services, listens: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        store = open_store({**services.environment, "AWS_ENDPOINT_URL_S3": endpoint})
        started = time.monotonic()
        with pytest.raises(MoonflowError) as raised:
            store.check()
        assert time.monotonic() - started < 10
    assert endpoint in str(raised.value) and "moonflow doctor" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_refused_connection_is_one_line_in_every_method(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)  # not half a minute of patience each
    (tmp_path / "file").write_bytes(b"x")
    store = open_store({**services.environment, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    for act in (
        lambda: store.upload(tmp_path / "file", "a"),
        lambda: store.download("a", tmp_path / "b"),
        lambda: store.put_new("a", b""),
        lambda: store.list("a"),
    ):
        with pytest.raises(MoonflowError, match="cannot be reached"):
            act()


def test_full_local_disk(store: ObjectStore, small_disk: Path) -> None:
    store.put("objects/big", bytes(3 << 20))
    kept = small_disk / "kept"
    kept.write_bytes(b"kept")
    with pytest.raises(MoonflowError, match="disk full while writing .*disk/big: free some space"):
        store.download("objects/big", small_disk / "big")
    assert [path.name for path in small_disk.iterdir()] == ["kept"], "a partial file is left"
    assert kept.read_bytes() == b"kept"


LIMITED = """
import resource, signal, sys
from pathlib import Path
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    open_store().download("objects/big", Path(sys.argv[1]))
except MoonflowError as error:
    print(error)
"""


def test_file_size_limit(store: ObjectStore, services: Services, tmp_path: Path) -> None:
    store.put("objects/big", bytes(3 << 20))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "big")],
        env={**os.environ, **services.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("disk full while writing"), done.stderr
    assert not list(tmp_path.iterdir())
