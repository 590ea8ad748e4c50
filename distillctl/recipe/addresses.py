"""Parse the addresses of servers, name their hosts, and tell whether they are this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urlsplit

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
"""A host's name in ASCII: every parser of addresses reads it in the same way."""
_PORTS = {"https": 443, "http": 80}


def split(url: str) -> SplitResult:
    """Return the parts of an http or https address. Raise ValueError with the problem.

    A host beyond ASCII is refused: libraries encode it differently, and its letters may look like others.
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
    """Return HOST for https on its usual port, else HOST:PORT; in lower case, an IPv6 address in brackets. Raise like
    `split`."""
    parts = split(url)
    name = (parts.hostname or "").rstrip(".")
    name = f"[{name}]" if ":" in name else name
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    return name if port == _PORTS["https"] else f"{name}:{port}"


def is_local(url: str) -> bool:
    """Tell whether the address says that the server runs on this machine.

    Other names may also lead here, but only the resolver knows, and its answer may change.
    """
    name = (urlsplit(url).hostname or "").rstrip(".")
    address = _ip(name)
    return address.is_loopback if address is not None else name == "localhost" or name.endswith(".localhost")


def leads_here(url: str) -> bool:
    """Tell whether a local name resolves only to this machine's addresses, or to none."""
    parts = split(url)
    try:
        entries = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in entries)


def _ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
