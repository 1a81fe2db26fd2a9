"""The container images of the pipeline's tasks; a profile names others with ``run.image`` and ``run.train_image``."""

from __future__ import annotations

PIPELINE = "moonflow-pipeline:0.1.0"
"""Built from images/pipeline.Dockerfile."""
TRAIN = "moonflow-train:0.1.0"
"""Built from images/train.Dockerfile."""
