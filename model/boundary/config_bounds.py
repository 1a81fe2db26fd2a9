"""The bounds of the numbers in a checkpoint's config.json and preprocessor_config.json (ours), each stated once.

They leave room for models far larger than the largest released ones. They are small enough that a file cannot ask for
more memory than any machine has, or for arithmetic without meaning.

Whole numbers are JSON integers, never text, fractions or booleans; all numbers are finite.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_BYTES = 4 << 20  # of a config.json; released ones have a few kilobytes

Layers = Annotated[int, Field(strict=True, ge=1, le=1_000)]  # K2.5: 61, its vision tower 27
LeadingLayers = Annotated[int, Field(strict=True, ge=0, le=1_000)]
Width = Annotated[int, Field(strict=True, ge=1, le=65_536)]  # K2.5: 7,168
InnerWidth = Annotated[int, Field(strict=True, ge=1, le=262_144)]  # of a feed-forward layer: up to four times Width
Heads = Annotated[int, Field(strict=True, ge=1, le=1_024)]  # K2.5: 64
HeadWidth = Annotated[int, Field(strict=True, ge=1, le=4_096)]  # K2.5: 128
RotaryWidth = Annotated[int, Field(strict=True, ge=2, le=4_096, multiple_of=2)]  # rotated in pairs
Experts = Annotated[int, Field(strict=True, ge=1, le=4_096)]  # K2.5: 384
Vocabulary = Annotated[int, Field(strict=True, ge=1, le=2_000_000)]  # K2.5: 163,840
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2_000_000)]
IgnoredLabel = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]  # in targets: any number that is not a token
Positions = Annotated[int, Field(strict=True, ge=1, le=16_777_216)]  # K2.5: 262,144
PatchSize = Annotated[int, Field(strict=True, ge=1, le=256)]  # pixels; K2.5: 14
GridSize = Annotated[int, Field(strict=True, ge=1, le=4_096)]  # patches on a side; K2.5: 64
Frames = Annotated[int, Field(strict=True, ge=1, le=64)]  # that are pooled into one; K2.5: 4
MergedPatches = Annotated[int, Field(strict=True, ge=1, le=16)]  # on a side of a merged square; K2.5: 2

Epsilon = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Deviation = Annotated[float, Field(strict=True, gt=0, le=10, allow_inf_nan=False)]  # standard deviation of weights
Share = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0, le=1_000, allow_inf_nan=False)]  # of a loss; YaRN's mscale
Scale = Annotated[float, Field(strict=True, gt=0, le=1_000, allow_inf_nan=False)]
RotaryBase = Annotated[float, Field(strict=True, gt=1, le=1e12, allow_inf_nan=False)]  # not 1: its logarithm divides
Extension = Annotated[float, Field(strict=True, gt=1, le=1e6, allow_inf_nan=False)]  # of a context; K2.5: 64
Rotations = Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False)]  # over a context
