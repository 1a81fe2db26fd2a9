"""Addresses are read literally, and one rule says what a key may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.runtime.store.address import Address, checked, is_key
from components.runtime.store.folder_store import FolderStore
from components.runtime.store.object_store import ObjectStore
from components.runtime.store.s3 import S3Store
from model.boundary.errors import MoonflowError

ODD = (
    "a#b/c", "a?b=c&d", "100%", "a%20b", "a b", "a+b", "ü/ñ/漢", "a//b", "/a", "a/", "..", "a/../b", "a#", "#a", "?",
    "a:b@c",
)  # fmt: skip
ANY_KEY = st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.sampled_from(ODD)
PLAIN_KEY = ANY_KEY.filter(is_key)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, ObjectStore]:
    """A store of each kind; nothing is asked of the S3 server."""
    s3 = S3Store("s3://bucket/runs", endpoint="http://127.0.0.1:9", key="k", secret="s")
    return s3, FolderStore(f"file://{tmp_path_factory.mktemp('objects')}")


@given(bucket=st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]", fullmatch=True), key=ANY_KEY)
def test_every_s3_key_comes_back_as_it_was_written(bucket: str, key: str) -> None:
    assert Address.parse(f"s3://{bucket}/{key}") == Address("s3", bucket, key)
    assert str(Address("s3", bucket, key)) == f"s3://{bucket}/{key}"


@given(one=st.tuples(st.sampled_from(["b", "c"]), ANY_KEY), other=st.tuples(st.sampled_from(["b", "c"]), ANY_KEY))
@example(("b", "runs#1"), ("b", "runs#2"))
@example(("b", "runs?1"), ("b", "runs"))
@example(("b", "a/"), ("b", "a"))
@example(("b", "a%20b"), ("b", "a b"))
def test_two_places_are_never_one(one: tuple[str, str], other: tuple[str, str]) -> None:
    parsed = {Address.parse(f"s3://{bucket}/{key}") for bucket, key in (one, other)}
    assert len(parsed) == len({one, other})


@settings(deadline=None)
@given(key=PLAIN_KEY, other=PLAIN_KEY)
@example("a#b", "a")
@example("a?b", "a?c")
def test_the_address_of_a_key_names_that_key_alone(both: tuple[ObjectStore, ObjectStore], key: str, other: str) -> None:
    for store in both:
        assert store.base.relative(Address.parse(store.uri(key))) == key
        assert store.uri(store.uri(key)) == store.uri(key)
        assert (store.uri(key) == store.uri(other)) == (key == other)


def test_stores_with_odd_prefixes_are_different_stores() -> None:
    names = ("runs", "runs#1", "runs#2", "runs?x", "runs%20x", "runs x")
    bases = ["s3://b", *(f"s3://b/{name}" for name in names)]
    stores = [S3Store(base, endpoint="http://127.0.0.1:9", key="k", secret="s") for base in bases]
    assert [store.uri("k") for store in stores] == [f"{base}/k" for base in bases]


def test_a_folders_address_is_taken_literally(tmp_path: Path) -> None:
    for name in ("a%20b", "a b", "a#b", "a?b"):
        store = FolderStore(f"file://{tmp_path}/{name}")
        store.put("key", name.encode())
        assert (tmp_path / name / "key").read_bytes() == name.encode()


@pytest.mark.parametrize(
    "text",
    ["", "/data", "b/key", "S3://b/k", "s3:/b/k", "s3://", "s3:///key", "s3://buc#ket/k", "s3://b?x/k", "s3://u@b/k",
     "s3://b:80/k", "s3://../k", "http://b/k", "file://relative", "file://host/x", "file:///a/../b", "file:///a//b",
     "file:///a/./b", "file:///a\0b"],
)  # fmt: skip
def test_what_is_no_address_is_said_in_one_line(text: str) -> None:
    with pytest.raises(MoonflowError, match="is not a") as raised:
        Address.parse(text)
    assert "\n" not in str(raised.value)


REFUSED = ["", "/etc/x", "..", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "a/./b", "a\0b", "a\nb", "a\x7f",
           "a\\b", "x.part-1", "run/.part-1/x", "a\udc80b"]  # fmt: skip


@pytest.mark.parametrize("key", REFUSED, ids=ascii)
def test_both_stores_refuse_the_same_keys(both: tuple[ObjectStore, ObjectStore], key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(MoonflowError, match="is not a key"):
        checked(key)
    for store in both:
        for act in (
            lambda store=store: store.put(key, b""),
            lambda store=store: store.put_new(key, b""),
            lambda store=store: store.upload(tmp_path / "file", key),
            lambda store=store: store.delete(key),
        ):
            with pytest.raises(MoonflowError, match="is not a key") as raised:
                act()
            assert "\n" not in str(raised.value)


def test_nothing_is_written_outside_of_the_store(both: tuple[ObjectStore, ObjectStore], tmp_path: Path) -> None:
    s3, folder = both
    (tmp_path / "theirs").write_bytes(b"theirs")
    elsewhere = {
        s3: ["s3://bucket/runs2/x", "s3://other/runs/x", "s3://bucket/runs"],
        folder: [f"file://{tmp_path}/theirs"],
    }
    for store, addresses in elsewhere.items():
        for address in addresses:
            for act in (
                lambda store=store, address=address: store.put(address, b""),
                lambda store=store, address=address: store.put_new(address, b""),
                lambda store=store, address=address: store.upload(tmp_path / "theirs", address),
                lambda store=store, address=address: store.delete(address),
            ):
                with pytest.raises(MoonflowError, match="lies outside of MOONFLOW_STORE"):
                    act()
    assert (tmp_path / "theirs").read_bytes() == b"theirs" == folder.get(f"file://{tmp_path}/theirs")


def test_an_address_of_another_kind_is_told(both: tuple[ObjectStore, ObjectStore]) -> None:
    for store, address in zip(both, ("file:///x/y", "s3://b/y"), strict=True):
        with pytest.raises(MoonflowError, match="cannot be in the store"):
            store.get(address)


@pytest.mark.parametrize("base", ["s3://b/a//b", "s3://b//", "s3://b/../a", "s3://b//a"])
def test_a_store_has_a_plain_prefix(base: str) -> None:
    with pytest.raises(MoonflowError, match="cannot be a store"):
        S3Store(base, endpoint="http://127.0.0.1:9", key="k", secret="s")
