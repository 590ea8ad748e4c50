"""Addresses of servers: what may stand in one, how a host is named, and whether it is this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urlsplit

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
"""A host's name in ASCII: every parser of addresses reads it in the same way."""
_PORTS = {"https": 443, "http": 80}


def split(url: str) -> SplitResult:
    """The parts of an http or https address; ValueError says what is wrong with it.

    A host beyond ASCII is refused: libraries differ in how they encode one, and its letters may look like others.
    """
    if not url.isascii():
        raise ValueError("write the host in ASCII, as a browser's address line has it after a copy (xn--…)")
    if any(not character.isprintable() or character in ' \\"<>^`{|}' for character in url):
        raise ValueError("is not an address: it has a space, a backslash or a control character")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        raise ValueError("is not an address") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("must begin with https:// or http:// and name a host")
    if not _NAME.fullmatch(parts.hostname) and _ip(parts.hostname) is None:
        raise ValueError("does not name a host")
    return parts


def host(url: str) -> str:
    """HOST of https on its usual port, else HOST:PORT; in lower case, an IPv6 address in brackets.

    ValueError as `split`.
    """
    parts = split(url)
    name = (parts.hostname or "").rstrip(".")
    name = f"[{name}]" if ":" in name else name
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    return name if port == _PORTS["https"] else f"{name}:{port}"


def is_local(url: str) -> bool:
    """Whether the address says that the server runs on this machine. Other names may lead here too; only the resolver
    knows, and it may say something else the next time."""
    name = (urlsplit(url).hostname or "").rstrip(".")
    address = _ip(name)
    return address.is_loopback if address is not None else name == "localhost" or name.endswith(".localhost")


def leads_here(url: str) -> bool:
    """Whether the resolver has only addresses of this machine for a local name, or none at all."""
    parts = split(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
