"""Determines which addresses other machines can reach."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address.

    Host names other than localhost count as reachable, since they may resolve to any address.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
