"""Who reaches whom through the network policies, decided by the rules that Kubernetes documents for them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

import pytest

from tests.manifests.overlays import Json, named, objects
from tests.manifests.policy import pod_templates

Labels = dict[str, str]


@dataclass(frozen=True)
class Peer:
    """A pod, or with ``address`` something outside the cluster."""

    namespace: str = ""
    labels: Labels = field(default_factory=dict)
    namespace_labels: Labels = field(default_factory=dict)
    address: str = ""


def chosen(selector: Json, labels: Labels) -> bool:
    for rule in selector.get("matchExpressions", []):
        inside = rule["key"] in labels and (rule["operator"] == "Exists" or labels[rule["key"]] in rule["values"])
        assert rule["operator"] in ("Exists", "In"), "teach me"
        if not inside:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def matches(rule: Json, peer: Peer, home: str) -> bool:
    if "ipBlock" in rule:
        if not peer.address:
            return False
        address = ipaddress.ip_address(peer.address)
        block = rule["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(excepted) for excepted in block.get("except", [])
        )
    if peer.address:
        return False
    if "namespaceSelector" in rule:
        if not chosen(rule["namespaceSelector"], peer.namespace_labels):
            return False
    elif peer.namespace != home:
        return False
    return chosen(rule.get("podSelector", {}), peer.labels)


def lets(policies: list[Json], direction: str, subject: Peer, other: Peer, port: int) -> bool:
    """Whether ``subject`` may send to (Egress) or receive from (Ingress) ``other``; free if no policy selects it."""
    applying = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == subject.namespace
        and direction in policy["spec"]["policyTypes"]
        and chosen(policy["spec"]["podSelector"], subject.labels)
    ]
    side = "to" if direction == "Egress" else "from"
    rules = [rule for spec in applying for rule in spec.get(direction.lower(), [])]
    return not applying or any(
        (side not in rule or any(matches(peer, other, subject.namespace) for peer in rule[side]))
        and ("ports" not in rule or port in {row["port"] for row in rule["ports"]})
        for rule in rules
    )


def reaches(overlays: tuple[str, ...], source: Peer, target: Peer, port: int) -> bool:
    policies = [o for overlay in overlays for o in objects(overlay) if o["kind"] == "NetworkPolicy"]
    return (not source.namespace or lets(policies, "Egress", source, target, port)) and (
        not target.namespace or lets(policies, "Ingress", target, source, port)
    )


def in_namespace(overlay: str, labels: Labels) -> Peer:
    """A pod in the namespace that an overlay makes."""
    metadata = named(overlay, "Namespace")["metadata"]
    known = metadata["labels"] | {"kubernetes.io/metadata.name": metadata["name"]}
    return Peer(metadata["name"], labels, known)


def foreign(namespace: str, **labels: str) -> Peer:
    """A pod of someone else's namespace."""
    return Peer(namespace, {}, {"kubernetes.io/metadata.name": namespace} | labels)


def workload(overlay: str, kind: str, name: str, role: str = "") -> Peer:
    templates = dict(pod_templates(named(overlay, kind, name)))
    return in_namespace(overlay, templates[role]["metadata"]["labels"])


DEV, PROD = ("dev", "dev/platform"), ("prod", "prod/platform")
ENDPOINT = workload("dev", "Deployment", "moonflow-serve")
LEADER, WORKER = (workload("prod", "LeaderWorkerSet", "moonflow-serve", role) for role in ("leader", "worker"))
STORE = workload("dev/platform", "StatefulSet", "seaweedfs")
MLFLOW = workload("dev/platform", "Deployment", "mlflow")
TASK = in_namespace("dev/platform", {"workflows.argoproj.io/workflow": "moonflow-tiny-x"})
TRAINING = in_namespace("dev/platform", {"jobset.sigs.k8s.io/jobset-name": "joint-pretrain-x"})
STRANGER = in_namespace("dev/platform", {"app": "stranger"})
SWEEP = workload("dev/platform", "CronJob", "moonflow-sweep")
KUBEFLOW, MONITORING, DNS = foreign("kubeflow"), foreign("monitoring"), foreign("kube-system")
CLIENT = Peer("gateway", {}, {"kubernetes.io/metadata.name": "gateway", "moonflow.dev/serving-client": "true"})
OTHERS, INTERNET, METADATA = foreign("others"), Peer(address="93.184.215.14"), Peer(address="169.254.169.254")


@pytest.mark.parametrize(
    ("overlays", "source", "target", "port"),
    [
        (DEV, ENDPOINT, STORE, 8333),
        (DEV, TASK, STORE, 8333),
        (DEV, TASK, MLFLOW, 5000),
        (DEV, TASK, KUBEFLOW, 8887),
        (DEV, TASK, INTERNET, 6443),
        (DEV, TASK, ENDPOINT, 8000),
        (DEV, TRAINING, STORE, 8333),
        (DEV, TRAINING, MLFLOW, 5000),
        (DEV, TRAINING, TRAINING, 29400),
        (DEV, TRAINING, INTERNET, 443),
        (DEV, SWEEP, MLFLOW, 5000),
        (DEV, SWEEP, INTERNET, 6443),
        (DEV, MLFLOW, STORE, 8333),
        (DEV, KUBEFLOW, MLFLOW, 5000),
        (DEV, MONITORING, STORE, 9324),
        (DEV, MONITORING, ENDPOINT, 8000),
        (DEV, CLIENT, ENDPOINT, 8000),
        (DEV, STRANGER, DNS, 53),
        (DEV, ENDPOINT, DNS, 53),
        (PROD, LEADER, WORKER, 20000),
        (PROD, WORKER, LEADER, 41234),
        (PROD, LEADER, INTERNET, 443),
        (PROD, CLIENT, LEADER, 8000),
    ],
)
def test_what_must_be_reached_is(overlays: tuple[str, ...], source: Peer, target: Peer, port: int) -> None:
    assert reaches(overlays, source, target, port)


@pytest.mark.parametrize(
    ("overlays", "source", "target", "port"),
    [
        (DEV, OTHERS, ENDPOINT, 8000),
        (DEV, OTHERS, STORE, 8333),
        (DEV, OTHERS, MLFLOW, 5000),
        (DEV, CLIENT, ENDPOINT, 22),
        (DEV, MONITORING, STORE, 8333),
        (DEV, ENDPOINT, STORE, 9333),  # SeaweedFS' master, which asks for no keys
        (DEV, TRAINING, STORE, 9333),
        (DEV, ENDPOINT, MLFLOW, 5000),
        (DEV, ENDPOINT, INTERNET, 80),
        (DEV, ENDPOINT, METADATA, 443),
        (DEV, TASK, METADATA, 443),
        (DEV, TRAINING, METADATA, 443),
        (DEV, TRAINING, KUBEFLOW, 8887),
        (DEV, TRAINING, INTERNET, 6443),
        (DEV, TRAINING, ENDPOINT, 8000),
        (DEV, SWEEP, STORE, 8333),
        (DEV, SWEEP, METADATA, 443),
        (DEV, STORE, INTERNET, 443),
        (DEV, STRANGER, STORE, 8333),
        (DEV, STRANGER, ENDPOINT, 8000),
        (PROD, CLIENT, WORKER, 8000),
        (PROD, OTHERS, LEADER, 20000),
    ],
)
def test_what_need_not_be_reached_is_not(overlays: tuple[str, ...], source: Peer, target: Peer, port: int) -> None:
    assert not reaches(overlays, source, target, port)
