"""Parameters of the finish step."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import StepConfig


class Config(StepConfig):
    curve_points: int = Field(400, ge=2, description="largest number of points of a curve in the report (source: ours)")
