"""Real signatures by the signing library, and what a reader with a key lets through."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import stat
from pathlib import Path

import pytest

from components.release import signing
from components.release.signing import KEY, SIGNATURE, check, check_recorded, given_key, key_pair, public_half, sign
from model.boundary.errors import MoonflowError
from tests.published import write_text_checkpoint


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path / "keys")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = write_text_checkpoint(tmp_path / "export", "weights")
    sign(folder, keys[0])
    return folder


def test_a_key_pair_is_made_once_and_the_private_key_is_its_owners(tmp_path: Path, keys: tuple[Path, Path]):
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    before = private.read_bytes()
    assert key_pair(tmp_path / "keys") == keys and private.read_bytes() == before
    assert public_half(private, tmp_path / "half.pem").read_bytes() == public.read_bytes()


def test_what_was_signed_passes_and_the_manifest_may_lie_beside_it(signed: Path, keys: tuple[Path, Path]):
    (signed / "manifest.json").write_text("{}")
    check(signed, keys[1], "it")


def test_changes_of_every_kind_are_refused_in_one_line(signed: Path, keys: tuple[Path, Path], tmp_path: Path):
    def refused(match: str, public: Path = keys[1]) -> None:
        with pytest.raises(MoonflowError, match=match) as caught:
            check(signed, public, "s3://b/export")
        assert "\n" not in str(caught.value) and "s3://b/export" in str(caught.value)

    weights = signed / "model.safetensors"
    weights.write_bytes(b"Weights")
    refused("Hash mismatch for .*model.safetensors")
    weights.unlink()
    refused("Missing files .*model.safetensors")
    weights.write_bytes(b"weights")
    (signed / "code.py").write_text("import os")
    refused("Extra files .*code.py")
    (signed / "code.py").unlink()
    refused("Key mismatch", key_pair(tmp_path / "others")[1])
    bundle = json.loads((signed / SIGNATURE).read_text())
    statement = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"config.json", b"konfig.json")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    refused("InvalidSignature")
    (signed / SIGNATURE).write_text("{")
    refused("JSONDecodeError")
    (signed / SIGNATURE).unlink()
    refused("is not signed")


def test_recorded_digests_are_compared_without_the_files(signed: Path, keys: tuple[Path, Path], tmp_path: Path):
    names = ("config.json", "model.safetensors", SIGNATURE)
    digests = {name: hashlib.sha256((signed / name).read_bytes()).hexdigest() for name in names}
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(signed / SIGNATURE, alone)
    check_recorded(alone, digests, keys[1], "it")
    for wrong, says in (
        ({**digests, "config.json": "0" * 64}, "Hash mismatch for .*config.json"),
        ({name: digests[name] for name in names[1:]}, "Missing files .*config.json"),
        ({**digests, "code.py": "0" * 64}, "Extra files .*code.py"),
    ):
        with pytest.raises(MoonflowError, match=f"the signature of s3://b is not valid for .*{says}"):
            check_recorded(alone, wrong, keys[1], "s3://b")
    with pytest.raises(MoonflowError, match="Key mismatch"):
        check_recorded(alone, digests, key_pair(tmp_path / "others")[1], "it")
    (alone / SIGNATURE).unlink()
    with pytest.raises(MoonflowError, match="is not signed"):
        check_recorded(alone, digests, keys[1], "it")


def test_unusable_keys_are_told(signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MoonflowError, match="the signing key .*public.pem cannot be used"):
        sign(signed, keys[1])
    with pytest.raises(MoonflowError, match="the public key .*private.pem cannot be used"):
        check(signed, keys[0], "it")
    monkeypatch.setenv(KEY, str(tmp_path / "absent.pem"))
    with pytest.raises(MoonflowError, match="MOONFLOW_SIGNING_KEY is .*absent.pem, which is not a file"):
        given_key(KEY)
    monkeypatch.delenv(KEY)
    monkeypatch.setattr(signing, "MOUNTED", {KEY: keys[0]})
    assert given_key(KEY) == keys[0]
