"""From a profile to files: KFP's IR YAML, or Pipeline and PipelineVersion objects for Kubernetes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.dsl.base_component import BaseComponent

from model.boundary.errors import MoonflowError
from pipelines.fusion_ablation import fusion_ablation
from pipelines.k25 import k25
from pipelines.post_train import post_train
from pipelines.pretrain import pretrain
from pipelines.profile import Profile
from pipelines.rl_ablation import rl_ablation
from pipelines.sft_ablation import sft_ablation
from pipelines.swarm_ablation import swarm_ablation
from pipelines.toggle_ablation import toggle_ablation
from pipelines.visual_rl import visual_rl

BUILDERS = {
    "k25": k25,
    "pretrain": pretrain,
    "post_train": post_train,
    "visual_rl": visual_rl,
    "fusion_ablation": fusion_ablation,
    "sft_ablation": sft_ablation,
    "toggle_ablation": toggle_ablation,
    "rl_ablation": rl_ablation,
    "swarm_ablation": swarm_ablation,
}
VERSION = re.compile(r"[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUFFIXES = (".yaml", ".yml")
LABELS = {"app.kubernetes.io/name": "moonflow", "app.kubernetes.io/component": "pipeline"}
ARGO_CD = {
    # The API server refuses a version of an unknown pipeline, so the pipeline is synced first.
    "Pipeline": {"argocd.argoproj.io/sync-wave": "0"},
    # When Git names the next version, the older one stays, because schedules and earlier runs refer to it.
    "PipelineVersion": {"argocd.argoproj.io/sync-wave": "1", "argocd.argoproj.io/sync-options": "Prune=false"},
}


def pipeline_name(profile: Profile) -> str:
    """The pipeline's name on a server and in Kubernetes."""
    return f"moonflow-{profile.run.name}"


def version_name(profile: Profile, version: str) -> str:
    """The version's name on a server and in Kubernetes, where it must be unique in its namespace.

    Raises MoonflowError for a version that Kubernetes would refuse.
    """
    if not VERSION.fullmatch(version):
        raise MoonflowError(
            f"--version {version!r}: use lower-case letters, digits, '.' and '-', for example 0.1.0 or 0.1.0-3"
        )
    return f"{pipeline_name(profile)}-{version.replace('.', '-')}"


def check_output(path: Path) -> None:
    """Raise MoonflowError for a file that cannot be written, or whose name does not say that it is YAML."""
    if path.suffix not in SUFFIXES:
        raise MoonflowError(f"--output {path}: the output is YAML; end its name in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise MoonflowError(f"--output {path}: there is no folder {path.parent}; create it, or give another --output")


def check_namespace(namespace: str) -> None:
    """Raise MoonflowError for a namespace that Kubernetes would refuse."""
    if not NAMESPACE.fullmatch(namespace):
        raise MoonflowError(f"--namespace {namespace!r}: use lower-case letters, digits and '-', for example moonflow")


def _built(profile: Profile) -> BaseComponent:
    """The pipeline, which says what a parameter means once: where the UI asks for it, and not again at its component.

    A PipelineVersion would otherwise come near to the size that kubectl apply takes.
    """
    built = BUILDERS[profile.run.pipeline](profile)
    for component in built.pipeline_spec.components.values():
        for parameter in component.input_definitions.parameters.values():
            parameter.description = ""
    return built


def compile_ir(profile: Profile, path: Path) -> None:
    """Write the pipeline as IR YAML, which the Kubeflow UI, ``kfp pipeline create`` and ``moonflow submit`` accept."""
    compiler.Compiler().compile(_built(profile), str(path))


def compile_kubernetes(profile: Profile, path: Path, namespace: str, version: str) -> None:
    """Write a Pipeline and a PipelineVersion object, which kubectl can apply and Argo CD can sync.

    ``moonflow submit`` uploads the same content under the same names. A version is immutable.
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
        _built(profile),
        str(path),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    objects = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    for each in objects:
        each["metadata"] |= {"labels": LABELS, "annotations": ARGO_CD[each["kind"]]}
    path.write_text(yaml.safe_dump_all(objects, sort_keys=True))
