"""Signatures over a folder of files: who exported them (source: model-signing; a DSSE envelope over SHA-256 digests).

The signature, ``model.sig``, lies next to the files that it covers: all of the folder but the manifest, which names the
signature itself. What else the manifest says is therefore signed as a copy, ``release.json``. With it, the signature
covers the whole manifest, except for where in the store its files lie.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.runtime.checkpoints.manifest import MANIFEST, Manifest
from model.boundary.errors import MoonflowError

if TYPE_CHECKING:
    from model_signing import hashing

SIGNATURE = "model.sig"
STATEMENT = "release.json"
"""The manifest without its files. Releases signed before there was one do not have it."""
KEY, PUBLIC_KEY = "MOONFLOW_SIGNING_KEY", "MOONFLOW_SIGNING_PUBLIC_KEY"
"""Environment variables with the paths of the PEM files: P-256, P-384 or P-521, not encrypted."""
MOUNTED = {
    KEY: Path("/etc/moonflow/signing/private.pem"),  # Secret moonflow-signing
    PUBLIC_KEY: Path("/etc/moonflow/signing-public/public.pem"),  # ConfigMap moonflow-signing-public
}
"""Where they are mounted in a cluster's pods."""


def key_pair(folder: Path) -> tuple[Path, Path]:
    """The private and the public key of a local run, made once in ``folder``; only its owner can read the private
    one."""
    private, public = folder / "private.pem", folder / "public.pem"
    if not (private.is_file() and public.is_file()):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        known = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, data, mode in ((private, secret, 0o600), (public, known, 0o644)):
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(data)
    return private, public


def given_key(name: str) -> Path | None:
    """The key file that ``KEY`` or ``PUBLIC_KEY`` names, else the mounted one, else None.

    MoonflowError if the variable names no file.
    """
    if not (value := os.environ.get(name, "")):
        return MOUNTED[name] if MOUNTED[name].is_file() else None
    if not (path := Path(value)).is_file():
        raise MoonflowError(f"{name} is {value}, which is not a file: mount the key there or fix the variable")
    return path


def sign(folder: Path, private_key: Path) -> None:
    """Write the signature of ``folder``'s files; MoonflowError when the key cannot be used."""
    from model_signing import signing

    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable(private_key, error) from None
    config.set_hashing_config(_covered()).sign(folder, folder / SIGNATURE)


def public_half(private_key: Path, path: Path) -> Path:
    """Write the public key that belongs to a private one to ``path``; MoonflowError when the key cannot be read."""
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(private_key, error) from None
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path


def statement(manifest: Manifest) -> bytes:
    """The bytes of ``release.json``."""
    return manifest.model_copy(update={"files": ()}).canonical()


def check_release(folder: Path, manifest: Manifest, public_key: Path, name: str) -> None:
    """``check``, and compare the manifest with the copy that was signed. Raises MoonflowError as ``check`` does."""
    check(folder, public_key, name)
    stated = folder / STATEMENT  # if somebody removed it, ``check`` has failed: it is among the signed files
    if stated.is_file() and stated.read_bytes() != statement(manifest):
        raise MoonflowError(f"{name}: its manifest is not what was signed ({STATEMENT}): promote it again")


def check(folder: Path, public_key: Path, name: str) -> None:
    """Compare a folder with its signature; ``name`` is what an error calls the folder.

    Raises:
        MoonflowError: there is no signature, it was made with another key, or a file is not what was signed.
    """
    _compare(folder, public_key, name, _covered())


def check_recorded(folder: Path, digests: Mapping[str, str], public_key: Path, name: str) -> None:
    """``check`` for files that are elsewhere: their hex SHA-256 by name in ``digests``, the signature in ``folder``."""
    from model_signing import hashing, manifest

    form = manifest.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    items = [
        form.new_item(file, manifest.hashing.Digest("sha256", bytes.fromhex(digest)))
        for file, digest in digests.items()
        if file not in (SIGNATURE, MANIFEST)
    ]

    class Recorded(hashing.Config):
        """Takes the digests as they are recorded instead of reading files."""

        def hash(self, *_: Any, **__: Any) -> manifest.Manifest:
            return manifest.Manifest(name, items, form)

    _compare(folder, public_key, name, Recorded())


def _compare(folder: Path, public_key: Path, name: str, files: hashing.Config) -> None:
    if not (folder / SIGNATURE).is_file():
        raise MoonflowError(f"{name} is not signed, but {public_key} is to verify it: promote it again with a key")
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError) as error:
        raise MoonflowError(f"the public key {public_key} cannot be used ({_one_line(error)})") from None
    _refused(lambda: config.set_hashing_config(files).verify(folder, folder / SIGNATURE), name, public_key)


def _refused(verify: Callable[[], None], name: str, public_key: Path) -> None:
    try:
        verify()
    except Exception as error:  # a forged envelope can fail in any of its layers: whatever it raises is a refusal
        raise MoonflowError(
            f"the signature of {name} is not valid for {public_key} ({_one_line(error)}): do not serve it; "
            "promote it again"
        ) from None


def _unusable(private_key: Path, error: Exception) -> MoonflowError:
    return MoonflowError(
        f"the signing key {private_key} cannot be used ({_one_line(error)}): give an unencrypted PEM key of curve "
        "P-256, P-384 or P-521"
    )


def _covered() -> hashing.Config:
    from model_signing import hashing

    ignored: list[Any] = [SIGNATURE, MANIFEST]
    return hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]
