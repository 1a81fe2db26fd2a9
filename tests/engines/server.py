"""The stock engines as child processes: each from its own virtual environment, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.http_server import free_port

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / "build" / "engines"
START_S = 900.0
STOP_S = 20.0

MODULES = {"vllm": "vllm.entrypoints.openai.api_server", "sglang": "sglang.launch_server"}
# As one serves Kimi K2.5, but in float32 and on a CPU.
COMMON = [
    *("--served-model-name", "model", "--host", "127.0.0.1", "--dtype", "float32", "--trust-remote-code"),
    *("--tool-call-parser", "kimi_k2", "--reasoning-parser", "kimi_k2"),
]
OPTIONS = {
    "vllm": [
        *("--enable-auto-tool-choice", "--enforce-eager"),
        *("--attention-backend", "CPU_MLA"),  # on Intel's processors it would choose one that wants bfloat16
        # Its compiled rotary kernel for CPUs misreads MLA's strided slices; this is its own one in torch.
        *("--compilation-config", '{"custom_ops": ["all", "-rotary_embedding"]}'),
    ],
    "sglang": [
        *("--device", "cpu", "--attention-backend", "torch_native"),
        *("--max-total-tokens", "8192", "--mem-fraction-static", "0.1"),
    ],
}
MODEL_OPTION = {"vllm": "--model", "sglang": "--model-path"}
VARIABLES = {
    "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
    "sglang": {"SGLANG_VLM_CACHE_SIZE_MB": "0"},  # see model/rollout/sglang.py
}


@contextmanager
def serving(engine: str, checkpoint: Path, log: Path) -> Iterator[str]:
    """``vllm`` or ``sglang`` on a checkpoint folder; gives the base URL once ``/health`` answers, and ends it after.

    Raises:
        RuntimeError: no environment for it, or it ended or stayed silent for START_S; with the end of its log.
    """
    python = ENVIRONMENTS / engine / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"no {python}; `make test-engines` makes it")
    port = free_port()
    command = [python, "-m", MODULES[engine], MODEL_OPTION[engine], checkpoint, "--port"]
    variables = {
        "HF_HOME": str(log.parent / "huggingface"),  # transformers keeps copies of a checkpoint's code there
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(HERE / "stand_ins" / engine),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*map(str, command), str(port), *COMMON, *OPTIONS[engine]],
            env={**os.environ, **variables, **VARIABLES[engine]},
            cwd=log.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log)
        yield url
    finally:
        _stop(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1.0)
    ended = "is silent" if process.returncode is None else f"ended with {process.returncode}"
    raise RuntimeError(f"the engine {ended}; {log} ends with\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The whole group: both engines start processes of their own."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(STOP_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
