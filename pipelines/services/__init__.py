"""The services a local run needs: a real S3 server and a real MLflow server on free loopback ports."""

from pipelines.services.local import REPOSITORY, Services, exported, stop_kept, visited

__all__ = ["REPOSITORY", "Services", "exported", "stop_kept", "visited"]
