"""The ports of a run's services, and the sockets that SeaweedFS makes for them."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from pathlib import Path

from model.boundary.errors import MoonflowError

# One name for each port. SeaweedFS gets every port that it opens; its worker expects admin's gRPC port 10000 above.
PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin", "mlflow")
ADMIN_GRPC = 10000
PORT_RANGE = range(20000, 30000)  # below Linux's ephemeral ports, so that no outgoing connection takes one meanwhile
_CLOSE_S = 1.0  # a killed process closes its ports a little later


def choose() -> dict[str, int]:
    """Free ports in a row, by name.

    Raises:
        MoonflowError: the ports at a hundred places in ``PORT_RANGE`` are taken.
    """
    for _ in range(100):
        first = random.randrange(PORT_RANGE.start, PORT_RANGE.stop - len(PORTS))
        chosen = {name: first + offset for offset, name in enumerate(PORTS)}
        if free(chosen):
            return chosen
    raise MoonflowError(f"no {len(PORTS)} free ports in a row in {PORT_RANGE}: end what occupies them")


def free(ports: dict[str, int]) -> bool:
    """Whether all of ``ports``, and admin's gRPC port, can be bound on 127.0.0.1 now."""
    for port in (*ports.values(), ports["admin"] + ADMIN_GRPC):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def unix_sockets(ports: dict[str, int]) -> list[Path]:
    """The sockets that SeaweedFS makes in /tmp for its ports, not all of which it removes."""
    names = [f"{server}-grpc-{ports[f'{server}.grpc']}" for server in ("s3", "master", "volume", "filer")]
    names += [f"admin-grpc-{ports['admin'] + ADMIN_GRPC}", f"s3-{ports['s3']}", f"filer-{ports['filer']}"]
    return [Path(f"/tmp/seaweedfs-{name}.sock") for name in names]


def remove_sockets(ports: dict[str, int]) -> None:
    """Remove the sockets left for ``ports``, unless these are in use, perhaps by another run."""
    deadline = time.monotonic() + _CLOSE_S
    while not free(ports):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    for path in unix_sockets(ports):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # gone, or another user's
            path.unlink()
