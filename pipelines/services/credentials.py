"""The S3 key of a run folder's object store, in files that only their owner can read."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole


def credentials(run_dir: Path) -> tuple[str, str]:
    """The folder's own S3 key and secret: made once, readable by its owner only."""
    path = run_dir / "credentials.json"
    if not path.exists():
        _write_secret(path, {"access_key": secrets.token_hex(10).upper(), "secret_key": secrets.token_urlsafe(30)})
    try:
        saved = json.loads(path.read_text())
        return saved["access_key"], saved["secret_key"]
    except (ValueError, KeyError):
        raise MoonflowError(f"{path} is damaged: delete it and run again") from None


def s3_config(run_dir: Path, key: str, secret: str) -> Path:
    """The access rules for SeaweedFS: our key may do everything."""
    path = run_dir / "s3.json"
    identity = {
        "name": "moonflow",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    _write_secret(path, {"identities": [identity]})
    return path


def _write_secret(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON that only its owner can read."""
    write_whole(path, json.dumps(values).encode(), mode=0o600)
