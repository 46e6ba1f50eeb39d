"""Checks of the addresses on which a server would listen, and of who could change the server there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from backline.access.auth_file import environment_has_keys
from backline.access.exposure import is_loopback
from backline.cli.doctor.finding import Finding, error, note, ok, warning
from backline.server import ServerOptions


@dataclass(frozen=True, slots=True)
class TriedPort:
    """A port of the server, and the errno of an attempt to listen on the port; 0 if it succeeded."""

    option: str
    number: int
    problem: int = 0


@dataclass(frozen=True, slots=True)
class Exposure:
    """The addresses on which a server would listen, and what protects them."""

    host: str
    ports: tuple[TriedPort, ...] = ()
    #: Whether only this machine can reach the address.
    loopback: bool = True
    #: Whether there are keys, in a file or in environment variables.
    keyed: bool = False
    tls: bool = False
    #: Whether every client needs a certificate.
    certified: bool = False
    insecure_open: bool = False
    trust_pickle: bool = False
    trust_remote_code: bool = False


def host(exposure: Exposure) -> Iterator[Finding]:
    foreign = {errno.EADDRNOTAVAIL, socket.EAI_NONAME}
    if any(port.problem in foreign for port in exposure.ports):
        yield error(
            f"'{exposure.host}' is not an address of this machine",
            "The server cannot listen on it.",
            "Choose an address of this machine with --host, or 0.0.0.0 for all of them.",
        )
    else:
        yield ok(f"'{exposure.host}' is an address of this machine")


def ports(exposure: Exposure) -> Iterator[Finding]:
    taken = [port for port in exposure.ports if port.problem == errno.EADDRINUSE]
    for port in taken:
        yield error(
            f"Port {port.number} of {exposure.host} is in use",
            "The server does not start. If it runs already, this is its own port: give its URL to check it.",
            f"Stop the other program ('ss -ltnp | grep :{port.number}' names it), or choose another port with"
            f" {port.option}.",
        )
    if not taken:
        yield ok(f"{len(exposure.ports)} ports are free")


def privileged_ports(exposure: Exposure) -> Iterator[Finding]:
    refused = [port for port in exposure.ports if port.problem == errno.EACCES]
    for port in refused:
        yield error(
            f"Port {port.number} needs more rights than this user has",
            "The server does not start.",
            f"Choose a port above 1023 with {port.option}, and map it from outside.",
        )
    if not refused:
        yield ok("This user may listen on the ports")


def open_server(exposure: Exposure) -> Iterator[Finding]:
    if exposure.insecure_open and not exposure.keyed and not exposure.loopback:
        yield error(
            f"--insecure-open lets anyone who can reach {exposure.host} load models and change settings",
            "A model is code. Whoever may load one can run programs as the server.",
            "Leave out --insecure-open, and create keys: backline keys create.",
        )
    elif not exposure.loopback and not exposure.keyed and not exposure.certified:
        yield warning(
            f"Without keys, anyone who can reach {exposure.host} may run the models",
            "The server refuses changes there, but running models costs compute, and metadata is visible.",
            "Create keys ('backline keys create') and pass the file with --auth, or require client"
            " certificates with --ssl-client-ca.",
        )
    else:
        yield ok("Nobody from elsewhere may use the server without a key or certificate")


def plain_keys(exposure: Exposure) -> Iterator[Finding]:
    if exposure.keyed and not exposure.tls and not exposure.loopback:
        yield warning(
            f"Keys travel unencrypted to {exposure.host}",
            "Anyone on the network path can read and use them.",
            "Serve over TLS (--ssl-certificate and --ssl-key), or behind a proxy that does.",
        )
    else:
        yield ok("No key travels unencrypted between machines")


def trusted_code(exposure: Exposure) -> Iterator[Finding]:
    given = [
        option
        for option, on in (
            ("--trust-pickle", exposure.trust_pickle),
            ("--trust-remote-code", exposure.trust_remote_code),
        )
        if on
    ]
    for option in given:
        yield note(
            f"{option} is set for all models",
            "Whoever may change a repository, or send files with a load request, then runs code as the"
            " server.",
            "Use --trust-pickle-model PATTERN where pickles are meant, or convert the models (skops, ONNX)."
            if option == "--trust-pickle"
            else "Copy the models to a folder that you control.",
        )
    if not given:
        yield ok("Files that can execute code are not trusted in general")


ADDRESSES: Mapping[str, Callable[[Exposure], Iterator[Finding]]] = {
    "host": host,
    "ports": ports,
    "privileged-ports": privileged_ports,
    "open-server": open_server,
    "plain-keys": plain_keys,
    "trusted-code": trusted_code,
}


def read_exposure(options: ServerOptions) -> Exposure:
    """Collects the facts for the checks, and tries to listen on each port."""
    given = (
        ("--http-port", options.http_port),
        ("--grpc-port", options.grpc_port),
        ("--metrics-port", options.metrics_port),
    )
    return Exposure(
        host=options.host,
        ports=tuple(
            TriedPort(option, number, _tried(options.host, number)) for option, number in given if number
        ),
        loopback=is_loopback(options.host),
        keyed=options.auth is not None or environment_has_keys(),
        tls=options.tls is not None,
        certified=options.tls is not None and options.tls.only_certified,
        insecure_open=options.insecure_open,
        trust_pickle=options.lifecycle.trust_pickle,
        trust_remote_code=options.lifecycle.trust_remote_code,
    )


def _tried(host: str, port: int) -> int:
    """Listens on a port for a moment. Returns the errno if listening fails, else 0."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
    except OSError as error:
        return error.errno or 0
    return 0
