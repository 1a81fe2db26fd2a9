"""How a training step can be divided among GPUs: ZeRO, expert parallel, sequence parallel
(source: arXiv 1910.02054; arXiv 2006.16668; arXiv 2309.14509).

Every rank holds E/e of the experts, and each group of s ranks shares B sequences. ZeRO divides the rest of the model
over all G ranks, and each expert over the d = G/e ranks that hold it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from model.boundary.errors import MoonflowError
from model.network.config import ModelConfig


@dataclass(frozen=True)
class Workload:
    """What one data-parallel rank computes in a step.

    Attributes:
        tokens: tokens of a sequence.
        sequences: sequences of a data-parallel rank.
        vision_share: share of the tokens that come from images.
        patches: patches of one image.
    """

    tokens: int = 4096
    sequences: int = 1
    vision_share: float = 0.1
    patches: int = 1024

    def check(self, config: ModelConfig) -> None:
        """Raise MoonflowError, naming the option, if a value is out of range."""
        for option, value in (("--sequence", self.tokens), ("--batch", self.sequences)):
            if value < 1:
                raise MoonflowError(f"{option} {value}: give at least 1")
        if not 0 <= self.vision_share < 1:
            raise MoonflowError(f"--vision-share {self.vision_share}: give a share of tokens, at least 0 and below 1")
        merge = config.vision_config.merge_kernel_size[0] * config.vision_config.merge_kernel_size[1]
        if self.patches < merge or self.patches % merge:
            raise MoonflowError(f"--image-patches {self.patches}: an image has a multiple of {merge} patches")


@dataclass(frozen=True)
class PlannedLayout:
    """``gpus`` ranks; ``zero`` 1 to 3; ``experts`` expert-parallel and ``sequence`` sequence-parallel ranks."""

    gpus: int
    zero: int
    experts: int
    sequence: int
    recompute: bool

    @property
    def expert_replicas(self) -> int:
        """How many ranks hold the same experts."""
        return self.gpus // self.experts

    def describe(self) -> str:
        """In words, for a table."""
        parts = [f"ZeRO-{self.zero}"]
        if self.experts > 1:
            parts.append(f"expert-parallel {self.experts}")
        if self.sequence > 1:
            parts.append(f"sequence-parallel {self.sequence}")
        return ", ".join(parts) + (", layers recomputed" if self.recompute else "")


@dataclass(frozen=True)
class LayoutConstraints:
    """The parts of a layout that the user fixes; 0 leaves a part open."""

    zero: int = 0
    experts: int = 0
    sequence: int = 0

    def check(self, config: ModelConfig, gpus: int, tokens: int) -> None:
        """Raise MoonflowError, naming the option, if a value is out of range or does not divide what it must divide."""
        text = config.text_config
        if gpus < 1:
            raise MoonflowError(f"--gpus {gpus}: give at least 1")
        if self.zero not in (0, 1, 2, 3):
            raise MoonflowError(f"--zero {self.zero}: choose 1, 2 or 3")
        for option, value in (("--expert-parallel", self.experts), ("--sequence-parallel", self.sequence)):
            if value < 0:
                raise MoonflowError(f"{option} {value}: give at least 1")
        if self.experts:
            _divides("--expert-parallel", self.experts, {"GPUs": gpus, "routed experts": text.n_routed_experts})
        if self.sequence:
            whole = {"GPUs": gpus, "attention heads": text.num_attention_heads, "tokens of a sequence": tokens}
            _divides("--sequence-parallel", self.sequence, whole)


def _divides(option: str, value: int, wholes: dict[str, int]) -> None:
    for name, whole in wholes.items():
        if whole % value:
            raise MoonflowError(f"{option} {value} does not divide the {whole} {name}; give a divisor of {whole}")


def layouts(config: ModelConfig, gpus: int, tokens: int, constraints: LayoutConstraints) -> Iterator[PlannedLayout]:
    """Every layout that divides evenly and meets ``constraints``, each without and with recomputation."""
    text = config.text_config
    expert_ranks = [constraints.experts] if constraints.experts else _divisors(math.gcd(gpus, text.n_routed_experts))
    shared = math.gcd(gpus, text.num_attention_heads, tokens)
    sequence_ranks = [constraints.sequence] if constraints.sequence else _divisors(shared)
    for zero in [constraints.zero] if constraints.zero else [1, 2, 3]:
        for experts in expert_ranks:
            for sequence in sequence_ranks:
                for recompute in (False, True):
                    yield PlannedLayout(gpus, zero, experts, sequence, recompute)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
