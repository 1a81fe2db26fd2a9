from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from model.rollout.addresses import parse_addresses, replica_urls


def resolved(monkeypatch: pytest.MonkeyPatch, hosts: dict[str, list[str]], text: str) -> list[str]:
    """The replicas where the name service knows ``hosts``."""

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in hosts:
            raise socket.gaierror(f"{host} is not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in hosts[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asyncio.run(replica_urls(parse_addresses(text)))


def test_a_service_with_several_pods_stands_for_a_replica_at_each(monkeypatch):
    pods = ["10.0.0.3", "10.0.0.2", "10.0.0.3"]
    found = resolved(
        monkeypatch, {"rollout.moonflow": pods, "one": ["10.0.0.9"]}, "http://rollout.moonflow:30000,http://one:1/"
    )
    assert found == ["http://10.0.0.2:30000", "http://10.0.0.3:30000", "http://one:1"]


def test_a_name_that_is_not_known_yet_and_a_certificate_s_name_stay_as_they_are(monkeypatch):
    found = resolved(monkeypatch, {"safe": ["10.0.0.2", "10.0.0.3"]}, "http://later:30000, https://safe:443")
    assert found == ["http://later:30000", "https://safe:443"]
