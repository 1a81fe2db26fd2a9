"""The endpoint: it starts on verified weights only, is ready when it can answer, and drains."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kubernetes.utils.quantity import parse_quantity

from tests.manifests.overlays import ENVIRONMENTS, MANIFESTS, ROOT, Json, named, objects
from tests.manifests.policy import pod_templates
from tests.shell_programs import write_program

ENTRY = ROOT / "images" / "serve-entry.sh"


def templates(environment: str) -> dict[str, Json]:
    (workload,) = (o for o in objects(environment) if o["kind"] in ("Deployment", "LeaderWorkerSet"))
    return dict(pod_templates(workload))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_pod_verifies_digest_and_signature_before_it_serves(environment: str) -> None:
    init_digest = "CHECKPOINT_SHA256"
    for role, template in templates(environment).items():
        (init,) = template["spec"]["initContainers"]
        flags = dict(argument.split("=", 1) for argument in init["args"])
        assert flags == {
            "--uri": "$(CHECKPOINT_URI)",
            "--sha256": "$(CHECKPOINT_SHA256)",
            "--to": "/checkpoint",
            "--public-key": "/etc/moonflow/signing-public/public.pem",
        }, role
        mounts = {mount["mountPath"]: mount["name"] for mount in init["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        key = volumes[mounts["/etc/moonflow/signing-public"]]["configMap"]
        assert key["name"] == "moonflow-signing-public" and not key.get("optional"), "without the key nothing starts"
        (server,) = template["spec"]["containers"]
        told = next(entry["valueFrom"]["configMapKeyRef"] for entry in server["env"] if entry["name"] == init_digest)
        (promoted,) = (o for o in objects(environment) if o["metadata"]["name"].startswith("checkpoint-"))
        assert told == {"name": promoted["metadata"]["name"], "key": init_digest}, "the server knows what Git says, too"
        weights = next(mount for mount in server["volumeMounts"] if mount["mountPath"] == "/checkpoint")
        assert weights["readOnly"] and weights["name"] == mounts["/checkpoint"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_promotion_finds_its_keys(environment: str) -> None:
    (checkpoint,) = (o for o in objects(environment) if o["metadata"]["name"].startswith("checkpoint-"))
    assert checkpoint["data"].keys() == {"CHECKPOINT_URI", "CHECKPOINT_SHA256", "KFP_RUN_ID", "MLFLOW_RUN_ID"}
    text = (MANIFESTS / "overlays" / environment / "kustomization.yaml").read_text()
    assert "\nimages:\n- name: moonflow-serve\n" in text, "one image, for the init container and the server"


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_ready_means_warmed_up_and_a_busy_engine_is_not_restarted(environment: str) -> None:
    for role, template in templates(environment).items():
        (server,) = template["spec"]["containers"]
        if role == "worker":
            continue
        waited = {v["name"]: v.get("value") for v in server["env"]}
        engine = int(waited["SGLANG_HEALTH_CHECK_TIMEOUT"])
        startup, ready, live = (server[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
        assert startup["httpGet"]["path"] == ready["httpGet"]["path"] == "/ready"
        assert live["httpGet"]["path"] == "/health"
        assert live["timeoutSeconds"] > engine, "SGLang must give its verdict before the kubelet hangs up"
        assert live["periodSeconds"] >= live["timeoutSeconds"], "probes must not pile up in a hanging engine"
        assert live["failureThreshold"] >= 3
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600, "weights take most of an hour to load"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_pod_leaves_the_service_before_it_is_told_to_end(environment: str) -> None:
    for role, template in templates(environment).items():
        grace = template["spec"]["terminationGracePeriodSeconds"]
        if role == "worker":
            assert grace >= templates(environment)["leader"]["spec"]["terminationGracePeriodSeconds"]
        else:
            pause = template["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pause >= 10 and grace >= pause + 60


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_service_reaches_the_pods_that_answer(environment: str) -> None:
    selector = named(environment, "Service")["spec"]["selector"]
    chosen = {role for role, t in templates(environment).items() if selector.items() <= t["metadata"]["labels"].items()}
    assert chosen == ({"leader"} if environment == "prod" else {""})
    monitor = named(environment, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= named(environment, "Service")["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {p["name"] for p in named(environment, "Service")["spec"]["ports"]}


def test_a_group_is_one_engine_over_all_its_gpus() -> None:
    spec = named("prod", "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    for role, template in templates("prod").items():
        (server,) = template["spec"]["containers"]
        gpus = int(server["resources"]["limits"]["nvidia.com/gpu"])
        assert f"--tp-size={spec['size'] * gpus}" in server["args"], role
        assert "--dist-init-addr=$(LWS_LEADER_ADDRESS):20000" in server["args"]
        assert "--node-rank=$(LWS_WORKER_INDEX)" in server["args"]
        assert "--nnodes=$(LWS_GROUP_SIZE)" in server["args"]
    assert spec["restartPolicy"] == "RecreateGroupOnPodRestart"


@pytest.mark.parametrize(("environment", "surge"), [("dev", 1), ("prod", 0)])
def test_the_quota_holds_what_the_autoscaler_may_ask_for(environment: str, surge: int) -> None:
    quota = named(environment, "ResourceQuota")["spec"]["hard"]
    scaler = named(environment, "HorizontalPodAutoscaler")["spec"]
    (workload,) = (o for o in objects(environment) if o["kind"] == scaler["scaleTargetRef"]["kind"])
    assert scaler["scaleTargetRef"]["name"] == workload["metadata"]["name"]
    pods = (scaler["maxReplicas"] + surge) * workload["spec"].get("leaderWorkerTemplate", {}).get("size", 1)
    assert int(quota["pods"]) >= pods
    for template in templates(environment).values():
        for name, amount in template["spec"]["containers"][0]["resources"]["requests"].items():
            if name != "ephemeral-storage":
                assert parse_quantity(quota[f"requests.{name}"]) >= pods * parse_quantity(amount), name


def run_entry(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The entry with a `sglang` that prints its arguments instead of serving, and with `folder` as its /checkpoint."""
    summed = f'cd {folder} && exec {shutil.which("sha256sum")} "${{1#/checkpoint/}}"\n'
    write_program(folder / "sglang", 'printf "%s\\n" "$@"\n')
    write_program(folder / "sha256sum", summed)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([ENTRY, *arguments], capture_output=True, text=True, env={"PATH": path, **env})


def test_the_entry_gives_sglang_what_the_checkpoint_asks_for(tmp_path: Path) -> None:
    manifest = b'{"kind": "checkpoint"}'
    (tmp_path / "manifest.json").write_bytes(manifest)
    printed = run_entry(tmp_path, "serve", "--tp-size=8", "--host=0.0.0.0").stdout.splitlines()
    assert printed[0] == "serve"
    assert set(printed[1:]) == {
        "--model-path=/checkpoint", "--served-model-name=moonflow", "--trust-remote-code", "--enable-metrics",
        "--tool-call-parser=kimi_k2", "--reasoning-parser=kimi_k2", "--tp-size=8", "--host=0.0.0.0",
        f"--weight-version={hashlib.sha256(manifest).hexdigest()}",
    }  # fmt: skip
    promoted = hashlib.sha256(manifest).hexdigest()
    assert run_entry(tmp_path, "serve", CHECKPOINT_SHA256=promoted).returncode == 0
    replaced = run_entry(tmp_path, "serve", CHECKPOINT_SHA256="f" * 64)
    assert replaced.returncode == 1 and "was promoted" in replaced.stderr and not replaced.stdout
    (tmp_path / "manifest.json").unlink()
    assert run_entry(tmp_path, "serve").returncode != 0, "weights of no known manifest are not served"
    unknown = run_entry(tmp_path, "train")
    assert unknown.returncode == 2 and "checkpoint or serve" in unknown.stderr
    assert run_entry(tmp_path).returncode == 2


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_pods_call_the_entry(environment: str) -> None:
    for template in templates(environment).values():
        assert template["spec"]["initContainers"][0]["command"] == ["serve-entry", "checkpoint"]
        assert template["spec"]["containers"][0]["command"] == ["serve-entry", "serve"]
