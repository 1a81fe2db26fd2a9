"""From a profile to files: KFP's IR YAML, or Pipeline and PipelineVersion objects for Kubernetes."""

from __future__ import annotations

from pathlib import Path

from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from pipelines.k25 import k25
from pipelines.profile import Profile


def compile_ir(profile: Profile, path: Path) -> None:
    """Write the pipeline as IR YAML, as the Kubeflow UI and ``kfp pipeline create`` take it."""
    compiler.Compiler().compile(k25(profile), str(path))


def compile_kubernetes(profile: Profile, path: Path, namespace: str, version: str) -> None:
    """Write a Pipeline and a PipelineVersion object, as Argo CD syncs them. A version's name is immutable."""
    name = f"moonflow-{profile.run.name}"
    compiler.Compiler().compile(
        k25(profile),
        str(path),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=KubernetesManifestOptions(
            pipeline_name=name,
            pipeline_display_name=name,
            pipeline_version_name=f"{name}-{version.replace('.', '-')}",
            pipeline_version_display_name=version,
            namespace=namespace,
            include_pipeline_manifest=True,
        ),
    )
