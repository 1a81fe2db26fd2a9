"""The services a local run needs: a real S3 server and a real MLflow server on free loopback ports."""

from pipelines.services.local import Services, stop_kept

__all__ = ["Services", "stop_kept"]
