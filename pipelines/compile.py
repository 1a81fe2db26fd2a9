"""From a profile to files: KFP's IR YAML, or Pipeline and PipelineVersion objects for Kubernetes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from model.errors import MoonflowError
from pipelines.fusion_ablation import fusion_ablation
from pipelines.k25 import k25
from pipelines.profile import Profile

BUILDERS = {"k25": k25, "fusion_ablation": fusion_ablation}
VERSION = re.compile(r"[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUFFIXES = (".yaml", ".yml")
LABELS = {"app.kubernetes.io/name": "moonflow", "app.kubernetes.io/component": "pipeline"}
ARGO_CD = {
    # The API server refuses a version whose pipeline it does not know.
    "Pipeline": {"argocd.argoproj.io/sync-wave": "0"},
    # An older version stays when Git names the next one: schedules and earlier runs still point at it.
    "PipelineVersion": {"argocd.argoproj.io/sync-wave": "1", "argocd.argoproj.io/sync-options": "Prune=false"},
}


def pipeline_name(profile: Profile) -> str:
    """The pipeline's name on a server and in Kubernetes."""
    return f"moonflow-{profile.run.name}"


def version_name(profile: Profile, version: str) -> str:
    """The version's name on a server and in Kubernetes, where it must be its namespace's only one.

    Raises MoonflowError for a version that Kubernetes would refuse.
    """
    if not VERSION.fullmatch(version):
        raise MoonflowError(
            f"--version {version!r}: use small letters, digits, '.' and '-', for example 0.1.0 or 0.1.0-3"
        )
    return f"{pipeline_name(profile)}-{version.replace('.', '-')}"


def check_output(path: Path) -> None:
    """MoonflowError for a file that the compiler would not write, or not as what its name says."""
    if path.suffix not in SUFFIXES:
        raise MoonflowError(f"--output {path}: what is written is YAML; end the name in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise MoonflowError(f"--output {path}: there is no folder {path.parent}; make it, or give another --output")


def check_namespace(namespace: str) -> None:
    """MoonflowError for a namespace that Kubernetes would refuse."""
    if not NAMESPACE.fullmatch(namespace):
        raise MoonflowError(f"--namespace {namespace!r}: use small letters, digits and '-', for example moonflow")


def compile_ir(profile: Profile, path: Path) -> None:
    """Write the pipeline as IR YAML, as the Kubeflow UI, ``kfp pipeline create`` and ``moonflow submit`` take it."""
    compiler.Compiler().compile(BUILDERS[profile.run.pipeline](profile), str(path))


def compile_kubernetes(profile: Profile, path: Path, namespace: str, version: str) -> None:
    """Write a Pipeline and a PipelineVersion object, as kubectl applies and Argo CD syncs them.

    They are what ``moonflow submit`` would upload, under the same names. A version is immutable.
    """
    options = KubernetesManifestOptions(
        pipeline_name=pipeline_name(profile),
        pipeline_display_name=pipeline_name(profile),
        pipeline_version_name=version_name(profile, version),
        pipeline_version_display_name=version,
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        BUILDERS[profile.run.pipeline](profile),
        str(path),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    objects = list(yaml.safe_load_all(path.read_text()))
    for each in objects:
        each["metadata"] |= {"labels": LABELS, "annotations": ARGO_CD[each["kind"]]}
    path.write_text(yaml.safe_dump_all(objects, sort_keys=True))
