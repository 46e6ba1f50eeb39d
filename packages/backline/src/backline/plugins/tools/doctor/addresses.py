"""Checks the addresses on which a server would listen, and who could change a server at these addresses."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from backline.access.keys import environment_has_keys
from backline.plugins.tools.doctor.finding import Finding, error, note, ok, warning
from backline.server import OpenPort, ServerOptions

#: The errors for an address that this machine does not have.
_FOREIGN: Final = (errno.EADDRNOTAVAIL, socket.EAI_NONAME)


@dataclass(frozen=True, slots=True)
class TriedPort:
    """A port of the server, and the options that set its number and address. `problem` is the errno of an
    attempt to listen on the port; 0 if the attempt succeeded.
    """

    option: str
    number: int
    problem: int = 0
    host: str = "127.0.0.1"
    host_option: str = "--host"


@dataclass(frozen=True, slots=True)
class Exposure:
    """The ports on which a server would listen, and how they are protected."""

    ports: tuple[TriedPort, ...] = ()
    #: The addresses of these ports that other machines can reach.
    reachable: tuple[str, ...] = ()
    #: Whether there are keys, in a file or in environment variables.
    keyed: bool = False
    #: Whether all ports use TLS. A metrics port with --metrics-plain does not count.
    tls: bool = False
    #: Whether every client needs a certificate.
    certified: bool = False
    insecure_open: bool = False
    trust_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def where(self) -> str:
        return ", ".join(self.reachable)


def host(exposure: Exposure) -> Iterator[Finding]:
    foreign = {port.host: port.host_option for port in exposure.ports if port.problem in _FOREIGN}
    for name, option in foreign.items():
        yield error(
            f"'{name}' is not an address of this machine",
            "The server cannot listen on it.",
            f"Choose an address of this machine with {option}, or 0.0.0.0 for all of them.",
        )
    for name in dict.fromkeys(port.host for port in exposure.ports):
        if name not in foreign:
            yield ok(f"'{name}' is an address of this machine")


def ports(exposure: Exposure) -> Iterator[Finding]:
    taken = [port for port in exposure.ports if port.problem == errno.EADDRINUSE]
    for port in taken:
        yield error(
            f"Port {port.number} of {port.host} is in use",
            "The server does not start. If it is already running, this is its own port: to check it, pass its"
            " URL.",
            f"Stop the other program ('ss -ltnp | grep :{port.number}' names it), or choose another port with"
            f" {port.option}.",
        )
    if not taken:
        yield ok(f"{len(exposure.ports)} ports are free")


def privileged_ports(exposure: Exposure) -> Iterator[Finding]:
    refused = [port for port in exposure.ports if port.problem == errno.EACCES]
    for port in refused:
        yield error(
            f"Port {port.number} needs privileges that this user does not have",
            "The server does not start.",
            f"Choose a port above 1023 with {port.option}, and forward port {port.number} to it.",
        )
    if not refused:
        yield ok("This user may listen on the ports")


def open_server(exposure: Exposure) -> Iterator[Finding]:
    if exposure.insecure_open and not exposure.keyed and exposure.reachable:
        yield error(
            f"--insecure-open lets anyone who can reach {exposure.where} load models and change settings",
            "A model is code. Anyone who may load a model can run programs as the server's user.",
            "Leave out --insecure-open, and create keys: backline keys create.",
        )
    elif exposure.reachable and not exposure.keyed and not exposure.certified:
        yield warning(
            f"Without keys, anyone who can reach {exposure.where} may run the models",
            "The server refuses changes there, but running models costs compute, and metadata is visible.",
            "Create keys ('backline keys create') and pass the file with --auth, or require client"
            " certificates with --ssl-client-ca.",
        )
    else:
        yield ok("Nobody on another machine can use the server without a key or certificate")


def plain_keys(exposure: Exposure) -> Iterator[Finding]:
    if exposure.keyed and not exposure.tls and exposure.reachable:
        yield warning(
            f"Keys travel unencrypted to {exposure.where}",
            "Anyone on the network path can read and use them.",
            "Serve over TLS (--ssl-certificate and --ssl-key), or behind a proxy that terminates TLS.",
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
            "Anyone who may change a repository, or send files with a load request, can then run code as the"
            " server's user.",
            "Use --trust-pickle-model PATTERN for models that need pickles, or convert them (skops, ONNX)."
            if option == "--trust-pickle"
            else "Copy the models to a folder that you control.",
        )
    if not given:
        yield ok("Neither --trust-pickle nor --trust-remote-code is set")


ADDRESSES: Mapping[str, Callable[[Exposure], Iterator[Finding]]] = {
    "host": host,
    "ports": ports,
    "privileged-ports": privileged_ports,
    "open-server": open_server,
    "plain-keys": plain_keys,
    "trusted-code": trusted_code,
}


#: The options that set the number and the address of each port, by the port's label.
_OPTIONS: Final = {
    "HTTP": ("--http-port", "--host"),
    "gRPC": ("--grpc-port", "--grpc-address"),
    "metrics": ("--metrics-port", "--metrics-address"),
}


def read_exposure(options: ServerOptions) -> Exposure:
    """Tries to listen on each port, and returns the facts for the checks."""
    return Exposure(
        ports=tuple(_try(port, options.host) for port in options.ports),
        reachable=options.reachable,
        keyed=options.auth is not None or environment_has_keys(),
        tls=options.tls is not None and not options.tls_grpc_only,
        certified=options.only_certified,
        insecure_open=options.insecure_open,
        trust_pickle=options.lifecycle.trust_pickle,
        trust_remote_code=options.lifecycle.trust_remote_code,
    )


def _try(port: OpenPort, default: str) -> TriedPort:
    """Tries to listen on a port. `default` is the value of --host, the address of most ports."""
    option, host_option = _OPTIONS[port.label]
    if port.host == default:
        host_option = "--host"
    return TriedPort(option, port.port, _tried(port.host, port.port), port.host, host_option)


def _tried(host: str, port: int) -> int:
    """Listens on a port briefly. Returns the errno if listening fails, else 0."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
    except OSError as error:
        return error.errno or 0
    return 0
