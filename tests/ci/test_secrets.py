"""No key, token or password in what is tracked: detect-secrets' detectors of known key forms.

Its entropy detectors are left out: digests, which this repository is full of, look like keys to them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from detect_secrets import SecretsCollection
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector", "IPPublicDetector"}


def scan(folder: Path, names: list[str]) -> list[str]:
    """``file:line kind`` of what looks like a secret; a line ends with ``pragma: allowlist secret`` if it may stay."""
    detectors = {kind.__name__ for kind in get_mapping_from_secret_type_to_class().values()} - LEFT_OUT
    found = SecretsCollection(root=str(folder))
    with transient_settings({"plugins_used": [{"name": name} for name in sorted(detectors)]}):
        for name in names:
            found.scan_file(name)
    return [f"{name}:{secret.line_number} {secret.type}" for name, secret in found]


def test_no_secret_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 100
    assert scan(ROOT, names) == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN {}PRIVATE KEY-----".format("EC "),
        "aws_access_key_id = " + "AKIA" + "QYLPMN5HFIQR7BBZ",
        "token: " + "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx",
        "store = 'https://admin:" + "hunter2hunter2" + "@example.org/'",
    ],
    ids=["private key", "AWS key", "GitHub token", "password in a URL"],
)
def test_a_planted_secret_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(f"first = 1\n{text}\n")
    (found,) = scan(tmp_path, ["settings.py"])
    assert found.startswith("settings.py:2 ")
