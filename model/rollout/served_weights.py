"""The weights that an SGLang holds, against those of a checkpoint folder: by digest (source: SGLang 0.5.23
weight_checker.py and kimi_k25.py).

Asked for checksums, SGLang tells a digest of each parameter as it holds it in memory. It fuses some tensors of a
checkpoint, and renames some; each of its parameters here is one tensor of the checkpoint, or several below each other.

On a CPU its digest is the start of the SHA-256 of the parameter's bytes, so it can be compared with the checkpoint's
own. On a GPU it is another function, and a parameter that is divided among GPUs, quantised or packed has other bytes.
Such parameters can be compared between replicas only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.stored_tensors import StoredTensors

DIGITS = 16  # hexadecimal ones of a digest: its first 8 bytes

Digests = Mapping[str, str]
"""SGLang's name of a parameter -> its digest."""


@dataclass(eq=False)
class Weights:
    """A checkpoint that all replicas are to hold, and what they have told of it.

    Attributes:
        folder: where it lies, for this process and for the replicas; None if another process pushes it.
        version: what a replica that holds it calls it.
        digests: its own ones (``checkpoint_digests``); empty if they are not known here.
        comparable: parameters of which a replica has told the checkpoint's own digest, of these or earlier weights.
        told: what the first replica told that was believed.
    """

    folder: Path | None
    version: str
    digests: Digests
    comparable: frozenset[str] = frozenset()
    told: Digests | None = None

    def learn(self, told: Digests) -> None:
        """Note which of SGLang's digests can be compared with the checkpoint's."""
        self.comparable |= {name for name, digest in self.digests.items() if told.get(name) == digest}

    def fault(self, told: Digests) -> str:
        """What is wrong with a replica that tells these digests, after ``learn`` was given those of all; "" if nothing.

        A comparable parameter must be the checkpoint's. Another one, as far as it holds tensors of the checkpoint, must
        be that of the replica that was believed first.
        """
        first = self.told if self.told is not None else told
        expected = {name: self.digests[name] if name in self.comparable else first.get(name) for name in self.digests}
        apart = sorted(name for name, digest in expected.items() if told.get(name) != digest)
        if apart:
            of = "the checkpoint" if apart[0] in self.comparable else "another replica"
            return f"{len(apart)} parameters have another digest than those of {of}, first {apart[0]}"
        self.told = first
        return ""


# A checkpoint's tensor -> SGLang's parameter, and the tensor's place in it.
_FUSED = (
    (re.compile(r"(.*\.mlp\.experts)\.(\d+)\.gate_proj\.weight"), r"\1.w13_weight", 0),
    (re.compile(r"(.*\.mlp\.experts)\.(\d+)\.up_proj\.weight"), r"\1.w13_weight", 1),
    (re.compile(r"(.*\.mlp\.experts)\.(\d+)\.down_proj\.weight"), r"\1.w2_weight", 0),
    (re.compile(r"(.*\.mlp(?:\.shared_experts)?)\.()gate_proj\.weight"), r"\1.gate_up_proj.weight", 0),
    (re.compile(r"(.*\.mlp(?:\.shared_experts)?)\.()up_proj\.weight"), r"\1.gate_up_proj.weight", 1),
    (re.compile(r"(.*\.self_attn)\.()q_a_proj\.weight"), r"\1.fused_qkv_a_proj_with_mqa.weight", 0),
    (re.compile(r"(.*\.self_attn)\.()kv_a_proj_with_mqa\.weight"), r"\1.fused_qkv_a_proj_with_mqa.weight", 1),
    (re.compile(r"(vision_tower\..*)\.()wqkv\.(weight|bias)"), r"\1.attn.qkv_proj.\3", 0),
    (re.compile(r"(vision_tower\..*)\.()wo\.(weight|bias)"), r"\1.attn.proj.\3", 0),
    (re.compile(r"(mm_projector)\.()proj\.0\.(weight|bias)"), r"\1.linear_1.\3", 0),
    (re.compile(r"(mm_projector)\.()proj\.2\.(weight|bias)"), r"\1.linear_2.\3", 0),
)


def checkpoint_digests(checkpoint: Path) -> dict[str, str]:
    """The digest that an SGLang on a CPU tells of each parameter after it has loaded a checkpoint folder.

    Raises:
        MoonflowError: a file is missing or damaged.
    """
    tensors = StoredTensors(checkpoint)
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name in tensors.shapes:
        served, expert, place = _served(name)
        parts.setdefault(served, []).append((expert, place, name))
    digests = {}
    for served, names in parts.items():
        hashed = hashlib.sha256()
        for _, _, name in sorted(names):
            hashed.update(tensors.read(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digests[served] = hashed.hexdigest()[:DIGITS]
    return digests


def _served(name: str) -> tuple[str, int, int]:
    """SGLang's parameter that holds a tensor, the expert that the tensor is of, and its place in it."""
    for pattern, served, place in _FUSED:
        if found := pattern.fullmatch(name):
            return found.expand(served), int(found[2] or 0), place
    return name, 0, 0


def told_digests(answer: Mapping[str, Any]) -> dict[str, str]:
    """SGLang's answer to ``/weights_checker``: of each parameter its digest, with several ranks those of all of them.

    Raises:
        ValueError: the answer has no checksums.
    """
    told: dict[str, list[str]] = {}
    try:
        for rank in answer["ranks"]:
            for name, digest in rank["checksums"].items():
                told.setdefault(str(name), []).append(str(digest))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no checksums") from error
    # Ranks that hold a parameter whole tell the same digest.
    return {name: digests[0] if len(set(digests)) == 1 else "-".join(digests) for name, digests in told.items()}


def files_digest(checkpoint: Path) -> str:
    """The SHA-256 (hexadecimal) of what the weights of a checkpoint folder are: of the digests of its weight files."""
    whole = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
