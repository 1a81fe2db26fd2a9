"""The container image of the pipeline's tasks; a profile names another one with ``run.image``."""

from __future__ import annotations

PIPELINE = "moonflow-pipeline:0.1.0"
"""Built from images/pipeline.Dockerfile."""
