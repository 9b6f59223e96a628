"""Addresses that a request names: fetched, or called, by us, and never one of the inside.

In: an http(s) address. Out: its bytes in a file, or one sentence that tells nothing of what lies behind. Every connection is
made to the very address that was checked, so that neither a redirect nor a second answer of a name server leads elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver

from fleet.files import safe_name

log = logging.getLogger(__name__)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

REDIRECTS = 5
REDIRECTED = (301, 302, 303, 307, 308)
BYTES = 2 << 30  # of a file: what an archive may take on the disk of a node
SECONDS = 900  # for all of a file
IDLE_SECONDS = 30  # for its next byte, and for a connection
CHUNK = 1 << 16
# Addresses of the next network that carry one of the old in their last bits (NAT64, RFC 6052), or behind a prefix (6to4).
NAT64, SIX_TO_FOUR = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16")


class FetchError(ValueError):
    """The address could not be fetched; the sentence is for the client."""


@dataclass(frozen=True)
class Allowed:
    """What the operator lets requests reach besides the public network."""

    networks: tuple[IPNetwork, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def open(cls) -> Allowed:
        """Those of ``FETCH_ALLOW``: networks and names of hosts, with commas between, such as 10.1.0.0/16,minio.internal.

        Raises:
            ValueError: one of them is neither.
        """
        networks, hosts = [], set()
        for entry in filter(None, map(str.strip, os.environ.get("FETCH_ALLOW", "").split(","))):
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if not all(part and part.replace("-", "").isalnum() for part in entry.split(".")) or entry[-1].isdigit():
                    raise ValueError(f"FETCH_ALLOW: {entry!r} is neither a network, such as 10.1.0.0/16, nor a host.") from None
                hosts.add(entry.lower())
        return cls(tuple(networks), frozenset(hosts))

    def lets(self, host: str, address: IPAddress) -> bool:
        return host.lower() in self.hosts or any(address in network for network in self.networks) or is_public(address)


def is_public(address: IPAddress) -> bool:
    """Whether it is an address of the public network, also where it carries another inside."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address in SIX_TO_FOUR:
            return is_public(ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF))
    # is_global holds for multicast.
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class Fetcher:
    """Fetches and calls addresses from where it runs. One object may be used by many tasks at once."""

    def __init__(self, allowed: Allowed | None = None, resolver: AbstractResolver | None = None):
        self._allowed = allowed or Allowed.open()
        self._resolver = resolver

    async def fetch(self, address: str, target: Path, *, limit: int = BYTES, seconds: float = SECONDS) -> Path:
        """Write what lies at ``address`` to ``target``, which is removed again where that fails.

        Raises:
            FetchError: it is no http(s) address, it lies inside, it does not answer, or it is too large or too slow.
        """
        try:
            async with asyncio.timeout(seconds):
                for _ in range(REDIRECTS + 1):
                    async with self._answer("GET", address) as answer:
                        if answer.status in REDIRECTED and "Location" in answer.headers:
                            address = urljoin(address, answer.headers["Location"])
                            continue
                        if answer.status != 200:
                            raise FetchError(f"{_named(address)} answers HTTP {answer.status}.")
                        await _save(answer, target, limit)
                        return target
            raise FetchError(f"{_named(address)} is redirected more than {REDIRECTS} times.")
        except TimeoutError:
            raise FetchError(f"{_named(address)} took too long.") from None
        except aiohttp.ClientError as error:
            raise _unreachable(address, error) from None

    async def post(self, address: str, body: bytes, headers: dict[str, str], seconds: float = 10) -> int:
        """Send ``body`` to ``address`` and return the status of the answer; a redirect is not followed.

        Raises:
            FetchError: as `fetch`.
        """
        try:
            async with asyncio.timeout(seconds), self._answer("POST", address, body, headers) as answer:
                return answer.status
        except (TimeoutError, aiohttp.ClientError) as error:
            raise _unreachable(address, error) from None

    @asynccontextmanager
    async def _answer(
        self, method: str, address: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        host = check_address(address)

        def checked_socket(info: tuple) -> socket.socket:
            """Called for each connection, with the address that it goes to."""
            family, kind, protocol, _, place = info
            if not self._allowed.lets(host, ipaddress.ip_address(place[0].partition("%")[0])):
                raise PermissionError("it lies inside")
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(resolver=self._resolver, socket_factory=checked_socket, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=IDLE_SECONDS, sock_read=IDLE_SECONDS)
        # Without the environment's proxies, whose connections nobody checks; unpacking nothing, so that the limit holds.
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False, auto_decompress=False) as session,
            session.request(
                method,
                address,
                data=body,
                headers={"Accept-Encoding": "identity", "User-Agent": "flux-finetuner"} | (headers or {}),
                allow_redirects=False,
            ) as answer,
        ):
            yield answer


def file_name(address: str) -> str:
    """What a file of this address is called on our disk."""
    return safe_name(urlsplit(address).path.rpartition("/")[2])


def check_address(address: str) -> str:
    """The host of an http(s) address.

    Raises:
        FetchError: it is none, or has a name and password in it.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.username is not None:
        raise FetchError(f"{address[:80]!r} is not an address this server fetches. Send an http:// or https:// URL.")
    return host


async def _save(answer: aiohttp.ClientResponse, target: Path, limit: int) -> None:
    too_large = FetchError(f"{_named(str(answer.url))} has more than {limit // 10**6} MB.")
    if (answer.content_length or 0) > limit:
        raise too_large
    try:
        with target.open("wb") as file:
            size = 0
            async for chunk in answer.content.iter_chunked(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise too_large
                file.write(chunk)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _unreachable(address: str, error: Exception) -> FetchError:
    """One sentence for all that goes wrong below HTTP: which of it happened would map the inside for whoever asks."""
    log.info("%s could not be reached: %s", _named(address), error)
    return FetchError(f"{_named(address)} could not be reached from here.")


def _named(address: str) -> str:
    """The address without its query, where signatures are."""
    return address.partition("?")[0][:200]
