"""An environment's overlay: the file whose lines say what is served there."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from model.errors import MoonflowError

NONE = "none"
"""What stands where nothing is promoted or nothing is known; an empty literal would be no ConfigMap value."""
SERVING_IMAGE = "moonflow-serve"


@dataclass(frozen=True)
class Change:
    """What a promotion writes: address and manifest digest of the export, where it comes from, and the serving image.

    ``image_digest`` is ``sha256:...`` of the serving image; empty leaves the overlay's.
    """

    uri: str
    manifest_sha256: str
    kfp_run_id: str = ""
    mlflow_run_id: str = ""
    image_digest: str = ""


def path_of(clone: Path, environment: str) -> Path:
    """The overlay's file in a clone; MoonflowError when there is no such environment."""
    path = clone / "overlays" / environment / "kustomization.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in (clone / "overlays").glob("*"))) or "none"
        raise MoonflowError(f"the GitOps repository has no overlay {environment!r}; it has: {known}")
    return path


def read(path: Path) -> tuple[str, str]:
    """The checkpoint's address and manifest digest, ``("none", "none")`` before the first promotion."""
    values = dict(literal.split("=", 1) for literal in _literals(_load(path), path))
    return values.get("CHECKPOINT_URI", NONE), values.get("CHECKPOINT_SHA256", NONE)


def write(path: Path, change: Change) -> None:
    """Put a promotion into the overlay; comments and order stay, so that the diff is what changed."""
    document = _load(path)
    _literals(document, path)[:] = [
        f"CHECKPOINT_URI={change.uri}",
        f"CHECKPOINT_SHA256={change.manifest_sha256}",
        f"KFP_RUN_ID={change.kfp_run_id or NONE}",
        f"MLFLOW_RUN_ID={change.mlflow_run_id or NONE}",
    ]
    if change.image_digest:
        image = _image(document, path)
        image.pop("newTag", None)  # a tag beside a digest would only seem to matter
        image["digest"] = change.image_digest
    text = StringIO()
    _yaml().dump(document, text)
    path.write_text(text.getvalue())


def _literals(document: dict, path: Path) -> list[str]:
    for generator in document.get("configMapGenerator", []):
        if generator.get("name") == "checkpoint":
            return generator["literals"]
    raise MoonflowError(f"{path.parent.name}/{path.name} has no configMapGenerator named checkpoint; restore it")


def _image(document: dict, path: Path) -> dict[str, str]:
    for image in document.get("images", []):
        if image.get("name") == SERVING_IMAGE:
            return image
    raise MoonflowError(f"{path.parent.name}/{path.name} has no image named {SERVING_IMAGE} to pin; restore it")


def _load(path: Path) -> dict:
    return _yaml().load(path.read_text())


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml
