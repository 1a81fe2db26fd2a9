from __future__ import annotations

from typing import Any


def eval_row(
    step: str, suite: str, value: float, stderr: float = 0.05, *, ability: str = "knowledge", modality: str = "image",
    n: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """A score as an evaluation publishes it."""
    return {
        "step": step, "suite": suite, "ability": ability, "modality": modality, "value": value, "stderr": stderr,
        "n": n,
    }  # fmt: skip
