"""The overlays of manifests/, built by kubectl as a user builds them."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
KUBECTL = Path(sys.executable).with_name("kubectl")
ENVIRONMENTS = ("local", "dev", "prod")
OVERLAYS = (*ENVIRONMENTS, *(f"{environment}/platform" for environment in ENVIRONMENTS))
ARGO_CD = tuple(f"{environment}/argocd" for environment in ENVIRONMENTS)
"""Folders that an administrator applies by hand and Argo CD does not sync."""
Json = dict[str, Any]


def build(folder: Path) -> list[Json]:
    """The objects that `kubectl kustomize` prints for a folder."""
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return [document for document in yaml.load_all(built.stdout, Loader=yaml.CSafeLoader) if document]


@lru_cache
def objects(overlay: str) -> tuple[Json, ...]:
    """The objects of one of our folders, built once per session. Copy them before you change them."""
    return tuple(build(MANIFESTS / "overlays" / overlay))


def named(overlay: str, kind: str, name: str = "") -> Json:
    """The one object of a kind, or of a kind and name."""
    found = [o for o in objects(overlay) if o["kind"] == kind and (not name or o["metadata"]["name"] == name)]
    assert len(found) == 1, f"{overlay} has {len(found)} of {kind} {name}"
    return found[0]


def label(object_: Json) -> str:
    """How a message names an object."""
    return f"{object_['kind']} {object_['metadata'].get('namespace', '')}/{object_['metadata']['name']}"
