"""Addresses of objects, and what a key may be: the one place that reads either (source: ours).

``s3://bucket/key`` and ``file:///folder/key`` are read literally: everything after the bucket's slash is the key. S3
allows ``#``, ``?`` and ``%`` in keys, so nothing is cut off and nothing is decoded: ``file:///a%20b`` is the folder
``a%20b``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from model.boundary.errors import MoonflowError
from model.boundary.whole_file import PART

CALLERS = "MOONFLOW_SOURCE_"
"""Before the name of an AWS_* variable: what whoever called `moonflow run` had in it, for reading their own buckets."""
S3, FILE = "s3://", "file://"
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")  # what botocore sends; which of them exist, the server knows


@dataclass(frozen=True)
class Address:
    """Where an object or a prefix is stored; ``str`` writes it as it was read.

    Attributes:
        bucket: empty for files.
        key: of an object or, where it is empty or ends in a slash, a prefix. For files, the absolute path.
    """

    scheme: Literal["s3", "file"]
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """MoonflowError if the text is not an address."""
        if text.startswith(FILE):
            path = text.removeprefix(FILE)
            if not path.startswith("/"):
                raise MoonflowError(f"{text!r} is not a folder's address: write file:///absolute/folder")
            inside = path[1:].removesuffix("/")
            if inside and (fault := path_fault(inside)):
                raise MoonflowError(f"{text!r} is not a folder's address ({fault}): write file:///absolute/folder")
            return cls("file", "", path)
        bucket, _, key = text.removeprefix(S3).partition("/")
        if not text.startswith(S3) or not _BUCKET.fullmatch(bucket) or bucket in (".", ".."):
            raise MoonflowError(
                f"{text!r} is not an object-store address: write s3://bucket/prefix, or file:///absolute/folder"
            )
        return cls("s3", bucket, key)

    def __str__(self) -> str:
        return f"{S3}{self.bucket}/{self.key}" if self.scheme == "s3" else f"{FILE}{self.key}"

    def below(self, key: str) -> Address:
        """The address of ``key`` in this folder."""
        return replace(self, key=f"{self.key}/{key}" if self.key.strip("/") else f"{self.key}{key}")

    def relative(self, other: Address) -> str | None:
        """The key of ``other`` in this folder; None if it lies elsewhere."""
        start = self.below("").key
        if (other.scheme, other.bucket) != (self.scheme, self.bucket) or not other.key.startswith(start):
            return None
        return other.key.removeprefix(start)


def is_address(text: str) -> bool:
    return text.startswith((S3, FILE))


def is_key(text: str) -> bool:
    """Whether an object of ours may have this key below ``MOONFLOW_STORE``; the same for every store."""
    return _key_fault(text) is None


def checked(key: str) -> str:
    """``key``; MoonflowError if no object of ours may have it (``is_key``)."""
    if fault := _key_fault(key):
        raise MoonflowError(f"{key!r} is not a key ({fault}): name it as in run/step/0/file, relative to the store")
    return key


def _key_fault(key: str) -> str | None:
    if fault := path_fault(key):
        return fault
    if "\\" in key:
        return "it has a backslash"
    if PART in key:
        return f"{PART!r} is in the names of unfinished files"
    return None


def path_fault(path: str) -> str | None:
    """What is wrong with a relative path, whatever kind of store it is in."""
    parts = path.split("/")
    if path.startswith("/"):
        return "it is absolute and leads out of the store"
    if ".." in parts:
        return "'..' leads out of the store"
    if "" in parts or "." in parts:
        return "it has an empty part or '.'"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return "it has a control character"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return None
