"""An environment's overlay: the file whose lines say what is served there.

Anybody who may push to the GitOps repository can write it, so it is not trusted: nothing in it is constructed, followed
or expanded. A promotion replaces only the values that it changes; every other byte stays.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from components.release.git import one_line
from model.boundary.errors import MoonflowError

NONE = "none"
"""The value while nothing is promoted or known; a literal of a ConfigMap cannot be empty."""
SERVING_IMAGE = "moonflow-serve"
LARGEST = 256 * 1024
"""Bytes that an overlay may have (ours: it has one or two thousand)."""
DEEPEST = 64
"""Levels that its YAML may have (ours: patches have about ten); deeper ones exhaust a parser's stack."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./=@%+~-]*(:[A-Za-z0-9_./=@%+~-]+)*")  # YAML that needs no quotes anywhere
_YAML = "tag:yaml.org,2002:"
_TAGS = {_YAML + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Served(NamedTuple):
    """What an overlay says is served: a checkpoint's address and its manifest's digest."""

    uri: str
    manifest_sha256: str


NOTHING = Served(NONE, NONE)
"""What is served before the first promotion."""


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

    @property
    def served(self) -> Served:
        return Served(self.uri, self.manifest_sha256)


def check_name(environment: str) -> None:
    """MoonflowError unless an environment's name can be that of a folder in ``overlays/``."""
    if not _NAME.fullmatch(environment):
        raise MoonflowError(
            f"{one_line(environment)!r} is not an environment: give the name of a folder in overlays/, for example prod"
        )


def path_of(clone: Path, environment: str) -> Path:
    """The overlay's file in a clone; MoonflowError when there is no such environment, or it is reached by a symlink."""
    check_name(environment)
    path = clone / "overlays" / environment / "kustomization.yaml"
    for part in (path.parent.parent, path.parent, path):
        if part.is_symlink():
            raise MoonflowError(
                f"{part.relative_to(clone)} in the GitOps repository is a symbolic link: put the file itself there"
            )
    if not path.is_file():
        known = ", ".join(sorted(one_line(p.name) for p in (clone / "overlays").glob("*"))) or "none"
        raise MoonflowError(f"the GitOps repository has no overlay {environment!r}; it has: {known}")
    return path


def read(path: Path) -> Served:
    """What the file says is served; MoonflowError, naming what to fix, when it is not clear."""
    return _read(path).served()


def parse(data: bytes, name: str) -> Served:
    """What an overlay's bytes say is served; ``name`` is what an error calls them."""
    return _Overlay(data, name).served()


def write(path: Path, change: Change) -> None:
    """Put a promotion into the overlay; everything else stays as it is, so that the diff shows only the promotion."""
    before = _read(path)
    before.served()  # an overlay that is unclear now is for its author to fix
    after = _Overlay(before.changed(change), before.name)
    if after.served() != change.served or after.changed(change) != after.data:
        raise before.wrong("holds its literals in a way that cannot be changed here", "write one plain line for each")
    path.write_bytes(after.data)


def _read(path: Path) -> _Overlay:
    with path.open("rb") as stream:
        return _Overlay(stream.read(LARGEST + 1), "/".join(path.parts[-3:]))


class _Overlay:
    """An overlay's text with its YAML nodes, which know their positions in the text."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name
        if len(data) > LARGEST:
            raise self.wrong(f"has more than {LARGEST} bytes", "move what is not about the endpoint to another file")
        try:
            self._text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.wrong(f"is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
        try:
            self._check_depth()
            root = yaml.compose(self._text, Loader=_LOADER)
        except yaml.YAMLError as error:
            raise self.wrong(f"is not YAML ({_reason(error)})", "fix it") from None
        if root is None:
            raise self.wrong("is empty", "restore it")
        self._root = self._mapping(root, "the file")
        self._check_nodes()
        kind = self._field(self._root, "kind")
        if kind is not None and self._scalar(kind, "kind") != "Kustomization":
            raise self.wrong(f"is of the kind {one_line(kind.value)}", "give the Kustomization of the endpoint")

    def served(self) -> Served:
        literals = self._literals()
        found = Served(*(self._value(literals, key) for key in ("CHECKPOINT_URI", "CHECKPOINT_SHA256")))
        if found == NOTHING:
            return NOTHING
        if "://" not in found.uri or not found.uri.isprintable():
            raise self.wrong(f"has CHECKPOINT_URI={one_line(found.uri)}", "write an address, s3://..., or both as none")
        if not _DIGEST.fullmatch(found.manifest_sha256):
            said = one_line(found.manifest_sha256)
            raise self.wrong(f"has CHECKPOINT_SHA256={said}", "write 64 hexadecimal digits, or both as none")
        return found

    def changed(self, change: Change) -> bytes:
        """The file's bytes with a promotion in them."""
        literals = self._literals()
        wanted = {
            "CHECKPOINT_URI": change.uri,
            "CHECKPOINT_SHA256": change.manifest_sha256,
            "KFP_RUN_ID": change.kfp_run_id or NONE,
            "MLFLOW_RUN_ID": change.mlflow_run_id or NONE,
        }
        edits = []
        for key, value in wanted.items():
            self._value(literals, key)
            edits.append((*_span(literals[key]), _quoted(f"{key}={value}")))
        if change.image_digest:
            edits += self._pin(change.image_digest)
        text = self._text
        for start, end, new in sorted(edits, reverse=True):  # from the end, so that earlier positions stay right
            text = text[:start] + new + text[end:]
        mark = codecs.BOM_UTF8 if self.data.startswith(codecs.BOM_UTF8) else b""
        return mark + text.encode()

    def wrong(self, what: str, remedy: str) -> MoonflowError:
        return MoonflowError(f"{self.name} in the GitOps repository {what}: {remedy}")

    def _pin(self, digest: str) -> list[tuple[int, int, str]]:
        """The edits that pin the serving image; its digest replaces its tag, which would have no effect next to it."""
        image = self._named("images", SERVING_IMAGE)
        pairs = {key.value: (key, value) for key, value in image.value}
        if "newTag" in pairs and "digest" in pairs:
            raise self.wrong(f"gives the image {SERVING_IMAGE} a newTag and a digest", "leave the newTag out")
        if pair := pairs.get("digest") or pairs.get("newTag"):
            # Each by itself: there may be a comment in between.
            return [(*_span(pair[0]), "digest"), (*_span(pair[1]), digest)]
        start = image.value[0][0].start_mark
        line = "\r\n" if "\r\n" in self._text else "\n"
        between = ", " if image.flow_style else line + " " * start.column
        return [(start.index, start.index, f"digest: {digest}{between}")]

    def _literals(self) -> dict[str, ScalarNode]:
        """The literals of the ConfigMap that promotion writes, by key."""
        node = self._field(self._named("configMapGenerator", "checkpoint"), "literals")
        if not isinstance(node, SequenceNode):
            raise self.wrong("has no list of literals in the configMapGenerator checkpoint", "restore it")
        found: dict[str, ScalarNode] = {}
        for item in node.value:
            key, equals, _ = self._scalar(item, "a literal of checkpoint").partition("=")
            if not equals:
                raise self.wrong(f"has the literal {one_line(key)!r} in line {_line(item)}", "write KEY=VALUE")
            if key in found:
                raise self.wrong(f"has the literal {one_line(key)} twice, in line {_line(item)} again", "keep one")
            found[key] = item
        return found

    def _value(self, literals: dict[str, ScalarNode], key: str) -> str:
        if key not in literals:
            raise self.wrong(f"lacks the literal {key} in checkpoint", f"add - {key}=none")
        return literals[key].value.partition("=")[2]

    def _named(self, field: str, name: str) -> MappingNode:
        """The one entry of a list that has a name."""
        entries = self._field(self._root, field)
        if entries is not None and not isinstance(entries, SequenceNode):
            raise self.wrong(f"has {field} that is not a list, in line {_line(entries)}", "write a list")
        found = []
        for entry in entries.value if entries else []:
            entry_name = self._field(self._mapping(entry, f"an entry of {field}"), "name")
            if isinstance(entry_name, ScalarNode) and entry_name.value == name:
                found.append(entry)
        if len(found) != 1:
            raise self.wrong(f"has {len(found) or 'no'} {field} named {name}", "keep one" if found else "restore it")
        return found[0]

    def _field(self, mapping: MappingNode, name: str) -> Node | None:
        return next((value for key, value in mapping.value if key.value == name), None)

    def _mapping(self, node: Node, what: str) -> MappingNode:
        if not isinstance(node, MappingNode):
            raise self.wrong(f"is wrong in line {_line(node)}: {what} is not a mapping", "write keys with values")
        return node

    def _scalar(self, node: Node, what: str) -> str:
        if not isinstance(node, ScalarNode) or node.tag != f"{_YAML}str":
            raise self.wrong(f"is wrong in line {_line(node)}: {what} is not text", "write text, in quotes if need be")
        return node.value

    def _check_depth(self) -> None:
        depth = 0
        for event in yaml.parse(self._text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise self.wrong(f"has more than {DEEPEST} levels of YAML", "fix it")

    def _check_nodes(self) -> None:
        for node in _every(self._root):
            if node.tag not in _TAGS:
                raise self.wrong(f"has the tag {one_line(node.tag)} in line {_line(node)}", "leave it out")
            if isinstance(node, MappingNode):
                seen = set()
                for key, _ in node.value:
                    if not isinstance(key, ScalarNode):
                        raise self.wrong(f"has a key that is not text in line {_line(key)}", "write a plain key")
                    if key.value in seen:
                        again = f"has the key {one_line(key.value)} twice, in line {_line(key)} again"
                        raise self.wrong(again, "keep one")
                    seen.add(key.value)


def _every(root: Node) -> Iterator[Node]:
    """Every node once: aliases make a document a graph, possibly with circles."""
    ahead, seen = [root], {id(root)}
    while ahead:
        node = ahead.pop()
        yield node
        if isinstance(node, ScalarNode):
            continue
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                if id(part) not in seen:
                    seen.add(id(part))
                    ahead.append(part)


def _span(node: Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


def _line(node: Node) -> int:
    return node.start_mark.line + 1


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return one_line(str(error))
    said = " ".join(filter(None, (error.context, error.problem)))
    return one_line(f"{said}, line {error.problem_mark.line + 1}" if error.problem_mark else said)
