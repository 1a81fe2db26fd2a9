"""The schemas that an API server would check custom objects with: the projects' own CustomResourceDefinitions."""

from __future__ import annotations

import gzip
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.manifests.overlays import ROOT, Json

FOLDER = ROOT.parent / "shared" / "crds"


@cache
def definition(group: str, version: str, kind: str) -> tuple[Json, str]:
    """The schema, and `Namespaced` or `Cluster`. Reads the one file: all of them would take seconds."""
    for path in FOLDER.glob(f"{group}_{kind.lower()[:-1]}*.yaml.gz"):  # the rest of the name is the plural
        spec = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)["spec"]
        if spec["names"]["kind"] == kind:
            (schema,) = (each["schema"]["openAPIV3Schema"] for each in spec["versions"] if each["name"] == version)
            return _strict(schema), spec["scope"]
    raise KeyError(f"no definition of {kind} in {group}/{version}")


def problems(object_: Json) -> list[str]:
    """Where an object violates the definition of its kind; KeyError if there is no such definition."""
    group, version = object_["apiVersion"].split("/")
    schema, scope = definition(group, version, object_["kind"])
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(object_)
    ]
    if (scope == "Namespaced") != ("namespace" in object_["metadata"]):
        found.append(f"metadata.namespace: the kind is {scope}")
    return found


def _strict(schema: Any) -> Any:
    """A structural schema as JSON schema: an unknown field is an error, as it is for `kubectl apply`."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {key: value for key, value in schema.items() if key not in ("properties", "default", "example")}
    result = {key: _strict(value) for key, value in kept.items()}
    if "properties" in schema:
        result["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        # Only the structural part names every field; allOf and its like add conditions to some of them.
        if not open_ended and schema.get("type") == "object":
            result["additionalProperties"] = False
        if "kind" in schema["properties"] and "metadata" in schema["properties"]:
            result["properties"]["metadata"] = {"type": "object"}
    if schema.get("nullable"):
        result = {"anyOf": [result, {"type": "null"}]}
    return result
