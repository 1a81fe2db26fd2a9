"""The object store over S3, by boto3, with bounded retries and errors that say what to do."""

from __future__ import annotations

import builtins
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from components.runtime.store.address import S3, Address, is_address, is_key
from components.runtime.store.object_store import ObjectStore, disk_errors
from components.runtime.store.s3_errors import NOT_FOUND, check_settings, client_errors, code_of, request_errors
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import part_file

# A store that restarts or drops requests must not end a step of hours: the random back-off between these attempts (up
# to 1, 2, 4, 8, 16, 32 s) waits about half a minute for one that is away. This is botocore's older way to retry: its
# newer ones begin with 0.05 s, and all requests of a client share some 35 retries. A step's first request is check(),
# which gives up within ten seconds.
ATTEMPTS = 7
_CONNECT_S = 2
READ_S = 30  # without a byte; then the request counts as lost and is sent again
CHECK_ATTEMPTS = 2
CHECK_READ_S = 3
# Above this a file goes up in parts and in parallel; below, one request is cheaper.
_TRANSFER = TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=32 * 2**20, max_concurrency=4)
_PRECONDITION = {"412", "PreconditionFailed"}
_CONFLICT = {"409", "ConditionalRequestConflict", "OperationAborted"}
_CONFLICT_S = 0.1  # times two for each conflict so far: the longest pause before the next attempt


class S3Store(ObjectStore):
    """One bucket and prefix of an S3 server."""

    def __init__(
        self,
        base: str,
        *,
        endpoint: str = "",
        region: str = "",
        key: str = "",
        secret: str = "",
        token: str = "",
        apart: bool = False,
    ) -> None:
        """``base`` is ``s3://bucket/prefix``. What is empty comes from boto3's usual chain; if ``apart``, without the
        endpoint and the keys that this process's variables name, which are those of another store.

        MoonflowError on a bad address or setting.
        """
        super().__init__(base)
        if self.base.scheme != "s3":
            raise MoonflowError(f"{base!r} is not an object-store address: write s3://bucket/prefix")
        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token or None}
        with client_errors():
            core = botocore.session.get_session()
            if apart:
                core.get_component("credential_provider").remove("env")
            self._apart, self._session = apart, boto3.session.Session(botocore_session=core)
            self._options: dict[str, Any] = {
                "endpoint_url": endpoint or None,
                "region_name": region or self._session.region_name or "us-east-1",
                **(keys if key else {}),
            }
        self.endpoint = endpoint or "AWS S3"
        self._client = self._connect(READ_S, ATTEMPTS)

    @classmethod
    def configured(cls, base: str, env: Mapping[str, str], *, whole: bool, apart: bool = False) -> S3Store:
        """The store that ``env`` describes. If ``whole``, ``env`` holds the credentials too; else boto3 finds them.
        ``apart`` is the constructor's.

        MoonflowError names a variable that is wrong.
        """
        check_settings(env)
        keys = {
            name: env.get(variable, "") if whole else ""
            for name, variable in (
                ("key", "AWS_ACCESS_KEY_ID"), ("secret", "AWS_SECRET_ACCESS_KEY"), ("token", "AWS_SESSION_TOKEN"),
            )
        }  # fmt: skip
        return cls(
            base,
            endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or "",
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "",
            **keys,
            apart=apart,
        )

    def check(self) -> None:
        client = self._connect(CHECK_READ_S, CHECK_ATTEMPTS)
        with request_errors(f"{S3}{self.base.bucket}", self.endpoint):
            client.list_objects_v2(Bucket=self.base.bucket, Prefix=self.base.key, MaxKeys=1)

    def put(self, key: str, data: bytes) -> None:
        address = self._locate_writable(key)
        with self._explained(address):
            self._client.put_object(Bucket=address.bucket, Key=address.key, Body=data)

    def put_new(self, key: str, data: bytes) -> bool:
        address = self._locate_writable(key)
        with self._explained(address):
            attempt = 0
            while True:
                attempt += 1
                try:
                    self._client.put_object(Bucket=address.bucket, Key=address.key, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    if code_of(error) in _PRECONDITION:
                        return False
                    # A conflict means that another writer is in flight: who wins is known only later.
                    if code_of(error) not in _CONFLICT or attempt == ATTEMPTS:
                        raise
                time.sleep(random.uniform(0, _CONFLICT_S * 2**attempt))

    def get(self, key: str) -> bytes:
        address = self._locate(key)
        with self._explained(address):
            lost = 0
            while True:
                body = self._client.get_object(Bucket=address.bucket, Key=address.key)["Body"]
                try:
                    data: bytes = body.read()
                    return data
                except (IncompleteReadError, HTTPClientError):
                    # botocore sends a lost request again, but not one whose answer broke off.
                    lost += 1
                    if lost == ATTEMPTS:
                        raise

    def upload(self, path: Path, key: str) -> None:
        address = self._locate_writable(key)
        with self._explained(address):
            self._client.upload_file(str(path), address.bucket, address.key, Config=_TRANSFER)

    def download(self, key: str, path: Path) -> None:
        address = self._locate(key)
        with disk_errors(path), self._explained(address), part_file(path) as (stream, part):
            self._client.download_fileobj(address.bucket, address.key, stream, Config=_TRANSFER)
            stream.flush()
            part.replace(path)

    def size(self, key: str) -> int | None:
        address = self._locate(key)
        with self._explained(address):
            try:
                return int(self._client.head_object(Bucket=address.bucket, Key=address.key)["ContentLength"])
            except ClientError as error:
                if code_of(error) in NOT_FOUND:
                    return None
                raise

    def list(self, prefix: str = "") -> builtins.list[str]:
        address = self._locate(prefix)
        found = [
            Address("s3", address.bucket, row["Key"])
            for page in self._pages(address)
            for row in page.get("Contents", [])
        ]
        if is_address(prefix):
            return [str(one) for one in found]
        keys = (self.base.relative(one) for one in found)
        return [key for key in keys if key is not None and is_key(key)]

    def folders(self, prefix: str) -> builtins.list[str]:
        address = self._locate(prefix)
        rows = [row["Prefix"] for page in self._pages(address, Delimiter="/") for row in page.get("CommonPrefixes", [])]
        return [name for row in rows if (name := row[len(address.key) : -1])]

    def delete(self, key: str) -> None:
        address = self._locate_writable(key)
        with self._explained(address):
            self._client.delete_object(Bucket=address.bucket, Key=address.key)

    def _connect(self, read_s: int, attempts: int) -> Any:
        config = BotoConfig(  # type: ignore[call-arg]  # the stubs do not know the last one
            connect_timeout=_CONNECT_S,
            read_timeout=read_s,
            retries={"mode": "legacy", "total_max_attempts": attempts},
            s3={"addressing_style": "path"},
            max_pool_connections=32,
            ignore_configured_endpoint_urls=self._apart,
        )
        with client_errors():
            return self._session.client("s3", config=config, **self._options)

    def _pages(self, address: Address, **options: str) -> Iterator[dict[str, Any]]:
        with self._explained(address):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=address.bucket, Prefix=address.key, **options)

    def _explained(self, address: Address) -> AbstractContextManager[None]:
        return request_errors(str(address), self.endpoint)
