"""Choose the server's address, and the names under which a device may request it."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from distillctl.errors import UsageError

LOOPBACK = "127.0.0.1"
_LOCAL = frozenset({"localhost", LOOPBACK, "[::1]"})


def resolve(host: str) -> str:
    """Resolve --host to an IP address. Raise UsageError if it is not a name of this machine."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UsageError(f"--host {host}: there is no such address", next="--host 0.0.0.0 for every network") from None
    return str(entries[0][4][0])


def names(host: str, address: str) -> frozenset[str]:
    """Return the allowed Host headers, without the port.

    These are the requested host and, if the server listens on all addresses, this machine's own names and addresses.
    """
    allowed = {_bracketed(host.lower()), _bracketed(address)}
    if ipaddress.ip_address(address).is_loopback:
        allowed |= _LOCAL
    if ipaddress.ip_address(address).is_unspecified:
        name = socket.gethostname().lower()
        allowed |= _LOCAL | {name, f"{name}.local", *map(_bracketed, _addresses())}
    return frozenset(allowed)


def shown(host: str, address: str) -> str:
    """Return the host in the URL: if the server listens on all addresses, the one that other machines can reach."""
    if not ipaddress.ip_address(address).is_unspecified:
        return _bracketed(host)
    family, far = (socket.AF_INET6, "2001:db8::1") if ":" in address else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # sends nothing: only asks which of the addresses the route would use
            return _bracketed(str(probe.getsockname()[0]))
    except OSError:
        outside = (
            address_of_host for address_of_host in _addresses() if not ipaddress.ip_address(address_of_host).is_loopback
        )
        return _bracketed(next(outside, LOOPBACK))


def _addresses() -> list[str]:
    """Return this machine's addresses on all its networks."""
    return [
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
