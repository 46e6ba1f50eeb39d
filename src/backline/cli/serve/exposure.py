"""Who may use a server: a warning where that is everybody who reaches its address."""

from __future__ import annotations

from ipaddress import ip_address

from backline.server import ServerOptions


def exposure(options: ServerOptions) -> str:
    """What it means that other machines reach the server; empty if none can, or if clients need a certificate.

    A Unix socket is protected by the permissions of its folder.
    """
    ports = (options.http_port, options.grpc_port, options.metrics_port)
    if _is_loopback(options.host) or ports == (None, None, None):
        return ""
    if options.tls is not None and options.tls.client_ca is not None:
        return ""
    may = {
        "none": "use its models",
        "poll": "use its models and move their labels",
        "explicit": "use, load and unload its models",
    }[options.lifecycle.mode]
    encrypted = "" if options.tls is not None else "; nothing is encrypted"
    return (
        f"everybody who reaches this server's address, {options.host}, may {may}{encrypted}."
        " Let in only clients with a certificate (--ssl-certificate, --ssl-key, --ssl-client-ca),"
        " put a proxy with authentication in front, or listen on 127.0.0.1 or a --unix-socket"
    )


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost may resolve to any."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
