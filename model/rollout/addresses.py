"""The replicas of a rollout service: written as addresses, found by their service's name (source: ours).

A name with several IPv4 addresses stands for one replica at each of them, as a headless Service in Kubernetes has them.
A name with one address stands for one replica, so the name of a Service with a virtual address of its own does not do:
of several pods behind it, only one would get new weights.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from model.boundary.errors import MoonflowError
from model.rollout.keys import ENGINE_KEY


def parse_addresses(text: str) -> tuple[str, ...]:
    """The base URLs in a list with commas; none for an empty text.

    Raises:
        MoonflowError: a part of the list is no address of a server.
    """
    urls = tuple(_base(part.strip()) for part in text.split(",")) if text.strip() else ()
    for url in urls:
        if urls.count(url) > 1:
            raise MoonflowError(f"{url} is listed twice: list each server once")
    return urls


def _base(url: str) -> str:
    example = "write http://HOST:PORT, for example http://rollout.moonflow:30000, with commas between several"
    if "@" in url:
        raise MoonflowError(f"an address has an @: leave user and password out, and set {ENGINE_KEY} to the key")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:  # a port that is no number
        usable = False
    if not usable or parts.path not in ("", "/") or parts.query or parts.fragment or " " in url:
        raise MoonflowError(f"{url[:200]!r} is not the address of a server: {example}")
    return f"{parts.scheme}://{parts.netloc}"


async def replica_urls(urls: Sequence[str]) -> list[str]:
    """The base URL of every replica that the addresses stand for, in a fixed order.

    A name that nobody knows at the moment is returned as it is: to call it will say so. The host of an https address is
    never replaced, since its certificate is made out to the name.
    """
    found = await asyncio.gather(*(_resolved(url) for url in urls))
    return list(dict.fromkeys(url for each in found for url in each))


async def _resolved(url: str) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return [url]
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(parts.hostname, parts.port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError:
        return [url]
    hosts = sorted({str(info[4][0]) for info in infos})
    return [url] if len(hosts) < 2 else [f"http://{host}:{parts.port}" for host in hosts]
