"""The object store over S3, by boto3, with bounded retries and errors that say what to do."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from components.runtime.store import NotInStore, ObjectStore, disk_errors
from model.errors import MoonflowError

# A store that restarts or drops requests must not end a step of hours: the random back-off between these attempts (up
# to 1, 2, 4, 8, 16, 20, 20 s) waits about half a minute for one that is away. A step's first request is check(), which
# gives up within ten seconds.
_ATTEMPTS = 8
_CONNECT_S = 2
_READ_S = 30  # without a byte; then the request counts as lost and is sent again
_CHECK_ATTEMPTS = 2
_CHECK_READ_S = 3
# Above this a file goes up in parts and in parallel; below, one request is cheaper.
_TRANSFER = TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=32 * 2**20, max_concurrency=4)
_NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden", "ExpiredToken"}
_PRECONDITION = {"412", "PreconditionFailed"}
_CONFLICT = {"409", "ConditionalRequestConflict", "OperationAborted"}


class S3Store(ObjectStore):
    """One bucket and prefix of an S3 server."""

    def __init__(
        self, base: str, *, endpoint: str | None = None, region: str = "us-east-1", key: str = "", secret: str = ""
    ) -> None:
        """``base`` is ``s3://bucket/prefix``; without a ``key``, credentials come from boto3's usual chain.

        MoonflowError on a bad URI.
        """
        self.endpoint = endpoint or "AWS S3"
        self._bucket, self._prefix = _split(base.rstrip("/"))
        self._session = boto3.session.Session()
        self._options: dict[str, Any] = {"endpoint_url": endpoint, "region_name": region}
        if key:
            self._options |= {"aws_access_key_id": key, "aws_secret_access_key": secret}
        self._client = self._connect(_READ_S, _ATTEMPTS)

    def check(self) -> None:
        client = self._connect(_CHECK_READ_S, _CHECK_ATTEMPTS)
        with self._explained(f"s3://{self._bucket}"):
            client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def uri(self, key: str) -> str:
        bucket, full = self._locate(key)
        return f"s3://{bucket}/{full}"

    def put(self, key: str, data: bytes) -> None:
        bucket, full = self._locate(key)
        with self._explained(key):
            self._client.put_object(Bucket=bucket, Key=full, Body=data)

    def put_new(self, key: str, data: bytes) -> bool:
        bucket, full = self._locate(key)
        for _ in range(_ATTEMPTS):
            with self._explained(key):
                try:
                    self._client.put_object(Bucket=bucket, Key=full, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    code = _code(error)
                    if code in _PRECONDITION:
                        return False
                    if code not in _CONFLICT:  # a conflict means another writer is in flight: ask again
                        raise
        return False

    def get(self, key: str) -> bytes:
        bucket, full = self._locate(key)
        with self._explained(key):
            lost = 0
            while True:
                body = self._client.get_object(Bucket=bucket, Key=full)["Body"]
                try:
                    data: bytes = body.read()
                    return data
                except (IncompleteReadError, HTTPClientError):
                    # botocore sends a lost request again, but not one whose answer broke off.
                    lost += 1
                    if lost == _ATTEMPTS:
                        raise

    def upload(self, path: Path, key: str) -> None:
        bucket, full = self._locate(key)
        with self._explained(key):
            self._client.upload_file(str(path), bucket, full, Config=_TRANSFER)

    def download(self, key: str, path: Path) -> None:
        bucket, full = self._locate(key)
        part = path.with_name(f"{path.name}.part{os.getpid()}")
        try:
            with disk_errors(path), self._explained(key):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(bucket, full, str(part), Config=_TRANSFER)
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        bucket, full = self._locate(key)
        with self._explained(key):
            try:
                self._client.head_object(Bucket=bucket, Key=full)
            except ClientError as error:
                if _code(error) in _NOT_FOUND:
                    return False
                raise
        return True

    def list(self, prefix: str = "") -> builtins.list[str]:
        return [self._relative(prefix, row["Key"]) for page in self._pages(prefix) for row in page.get("Contents", [])]

    def folders(self, prefix: str) -> builtins.list[str]:
        pages = self._pages(prefix, Delimiter="/")
        rows = [row for page in pages for row in page.get("CommonPrefixes", [])]
        return [row["Prefix"].rstrip("/").rsplit("/", 1)[-1] for row in rows]

    def delete(self, key: str) -> None:
        bucket, full = self._locate(key)
        with self._explained(key):
            self._client.delete_object(Bucket=bucket, Key=full)

    def _connect(self, read_s: int, attempts: int) -> Any:
        config = BotoConfig(
            connect_timeout=_CONNECT_S,
            read_timeout=read_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"addressing_style": "path"},
            max_pool_connections=32,
        )
        return self._session.client("s3", config=config, **self._options)

    def _locate(self, key: str) -> tuple[str, str]:
        if key.startswith("s3://"):
            return _split(key)
        return self._bucket, f"{self._prefix}/{key}" if self._prefix else key

    def _relative(self, prefix: str, full: str) -> str:
        if prefix.startswith("s3://"):
            return f"s3://{_split(prefix)[0]}/{full}"
        return full[len(self._prefix) + 1 :] if self._prefix else full

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        bucket, full = self._locate(prefix)
        with self._explained(prefix):
            yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=full, **options)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn what boto3 raises about ``key`` into one line."""
        uri = key if key.startswith("s3://") else self.uri(key)
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            raise MoonflowError(
                f"no credentials for the object store at {self.endpoint}: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from None
        except ClientError as error:
            raise self._client_error(error, uri) from None
        except (BotoCoreError, Boto3Error) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, ClientError):
                raise self._client_error(cause, uri) from None
            raise MoonflowError(
                f"object store at {self.endpoint} cannot be reached for {uri} ({type(error).__name__}): start it or "
                "mend AWS_ENDPOINT_URL_S3; `moonflow doctor` checks it"
            ) from None

    def _client_error(self, error: ClientError, uri: str) -> MoonflowError:
        code = _code(error)
        message = str(error.response.get("Error", {}).get("Message", "")).splitlines()
        detail = f"{code}: {message[0]}" if message and message[0] else code
        if code == "NoSuchBucket":
            return MoonflowError(f"{uri}: no such bucket at {self.endpoint}: create it or mend MOONFLOW_STORE")
        if code in _NOT_FOUND:
            return NotInStore(f"{uri} does not exist at {self.endpoint}")
        if code in _REFUSED:
            return MoonflowError(
                f"object store at {self.endpoint} refused {uri} ({detail}): check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and the bucket's policy"
            )
        if int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500:
            return MoonflowError(
                f"object store at {self.endpoint} could not serve {uri} ({detail}): its disk may be full; free some "
                "space or look at its log, then run again"
            )
        return MoonflowError(f"object store at {self.endpoint} rejected {uri} ({detail})")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise MoonflowError(f"{uri!r} is not an object-store address: write s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/") + ("/" if parts.path.endswith("/") and len(parts.path) > 1 else "")
