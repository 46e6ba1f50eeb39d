"""The address of a server, parsed from a URL."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote, urlsplit

from backline_client.values.errors import InvalidArgument, Unavailable
from backline_client.values.spelling import nearest

Protocol = Literal["http", "grpc", "inproc"]

_SCHEMES: dict[str, tuple[Protocol, bool, int]] = {  # protocol, TLS, default port
    "http": ("http", False, 8000),
    "https": ("http", True, 443),
    "grpc": ("grpc", False, 8001),
    "grpcs": ("grpc", True, 443),
    "unix": ("http", False, 0),
    "http+unix": ("http", False, 0),
    "grpc+unix": ("grpc", False, 0),
    "inproc": ("inproc", False, 0),
    "dns+http": ("http", False, 8000),
    "dns+https": ("http", True, 443),
    "dns+grpc": ("grpc", False, 8001),
    "dns+grpcs": ("grpc", True, 443),
    "ray": ("grpc", False, 0),
}
_EXAMPLES = (
    "http://localhost:8000, grpc://localhost:8001, unix:/run/backline.sock or inproc:///path/to/repository"
)


#: Maximum age of the list of replicas that a client gets, in seconds. A replica that is being stopped takes
#: requests for longer than this after its removal from the list.
_RAY_MAX_AGE = 0.5


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address. `path` is the path of the socket or the repository; over TCP, it is the prefix that
    a proxy puts before /v2. `query` has the options of a repository. `by_dns` means that the host name has
    several servers, one at each of its IP addresses. `by_ray` means that the host is the name of a Ray
    deployment, whose replicas are the servers; the path then names the model that a replica must have ("" for
    any model).
    """

    url: str
    protocol: Protocol
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    unix: bool = False
    query: str = ""
    by_dns: bool = False
    by_ray: bool = False
    #: The name that was resolved to `host`; empty if `host` is as given in the URL.
    looked_up: str = ""

    @classmethod
    def parse_all(cls, urls: str) -> tuple[Address, ...]:
        """Parses the URLs of one server or of several, separated by commas.

        Raises InvalidArgument if one of them cannot be used.
        """
        if not isinstance(urls, str):
            raise InvalidArgument(
                f"the URL is an object of type {type(urls).__name__}: pass a string, in which commas separate"
                " the URLs of several servers"
            )
        if "," not in urls or urls.strip().startswith(("inproc:", "unix:", "http+unix:", "grpc+unix:")):
            return (cls.parse(urls),)
        addresses = tuple(cls.parse(url) for url in urls.split(",") if url.strip())
        if not addresses or any(address.protocol == "inproc" for address in addresses):
            raise InvalidArgument(f"'{urls}' is not a list of server URLs. Use, for example, {_EXAMPLES}")
        return addresses

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parses a URL; "host:port" means http. Raises InvalidArgument if the URL cannot be used."""
        text = url.strip()
        scheme, colon, rest = text.partition(":")
        if "://" not in text and (not colon or scheme.lower() not in _SCHEMES):
            if not text or "/" in text:
                raise InvalidArgument(f"'{url}' is not a server URL. Use, for example, {_EXAMPLES}")
            scheme, rest, text = "http", f"//{text}", f"http://{text}"
        scheme = scheme.lower()
        if scheme not in _SCHEMES:
            near = nearest(scheme, _SCHEMES, 1)
            hint = f": did you mean {near[0]}:?" if near else "."
            raise InvalidArgument(
                f"unknown scheme '{scheme}:' in '{url}'{hint} Use, for example, {_EXAMPLES}"
            )
        protocol, tls, port = _SCHEMES[scheme]
        if scheme == "ray":
            name, _, model = rest.removeprefix("//").rstrip("/").partition("/")
            if not name or ":" in name or "/" in model:
                raise InvalidArgument(
                    f"'{url}' names no deployment: expected ray://NAME or ray://NAME/MODEL. Set"
                    " RAY_ADDRESS to the address of Ray"
                )
            return cls(text, protocol, unquote(name), path=unquote(model), by_ray=True)
        if scheme == "inproc" or scheme.endswith("unix"):
            path, _, query = rest.removeprefix("//").partition("?" if scheme == "inproc" else "\0")
            if not path:
                raise InvalidArgument(f"'{url}' names no path. Use, for example, {_EXAMPLES}")
            return cls(text, protocol, path=unquote(path), unix=scheme != "inproc", query=query)
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", port if parts.port is None else parts.port
        except ValueError as error:
            raise InvalidArgument(
                f"'{url}' is not a server URL: {error}. Use, for example, {_EXAMPLES}"
            ) from None
        if not host:
            raise InvalidArgument(f"'{url}' names no host. Use, for example, {_EXAMPLES}")
        try:
            host.encode("idna")
        except UnicodeError:
            raise InvalidArgument(
                f"'{url}' names a host that cannot exist: the dot-separated parts of a host name must have"
                " 1 to 63 characters"
            ) from None
        if host.isdecimal():
            raise InvalidArgument(f"'{url}' names a port, but no host: use localhost:{host}")
        if parts.username is not None:
            raise InvalidArgument(
                "the URL contains a user name or password: pass headers={'authorization': '...'} instead, or"
                " api_key"
            )
        if parts.query or parts.fragment:
            raise InvalidArgument(
                f"'{url}' has a query or a fragment, but the URL of a server has none: leave it out"
            )
        if protocol == "grpc" and parts.path not in ("", "/"):
            raise InvalidArgument(f"'{url}' has the path '{parts.path}', which gRPC cannot use: leave it out")
        return cls(text, protocol, host, port, parts.path.rstrip("/"), tls, by_dns=scheme.startswith("dns+"))

    @property
    def changes(self) -> bool:
        """Whether the set of servers at this address can change; see `resolve`."""
        return self.by_dns or self.by_ray

    @property
    def server(self) -> str:
        """The URL of the server with the scheme unix, http or https, even if the client speaks gRPC: each
        port speaks both.
        """
        if self.unix:
            return f"unix:{self.path}"
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"

    @property
    def certified(self) -> str:
        """The name that the server's certificate must have."""
        return self.looked_up or self.host

    @property
    def authority(self) -> str:
        """The host and port, as in the Host header."""
        if self.unix:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def resolve(address: Address, *, near: bool = True) -> tuple[Address, ...]:
    """Returns the address of each server that a name resolves to. With `near`, the addresses of replicas that
    Ray runs on this node may be Unix sockets.

    Raises Unavailable if the name is unknown, and InvalidArgument if Ray is not installed, or if the replicas
    of a deployment have different models but the address names no model.
    """
    if address.by_ray:
        from backline_client.client.ray_directory import replica_urls

        urls = await asyncio.to_thread(
            replica_urls, address.host, address.path, max_age=_RAY_MAX_AGE, near=near
        )
        return tuple(Address.parse(url) for url in urls)
    if not address.by_dns:
        return (address,)
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(
            f"cannot look up the host of {address.url}: {error.strerror or error}. Is the name right?"
        ) from None
    hosts = sorted({str(info[4][0]) for info in infos})
    found = (replace(address, host=host, looked_up=address.host, by_dns=False) for host in hosts)
    scheme = address.url.partition("://")[0].lower().removeprefix("dns+")
    return tuple(replace(one, url=f"{scheme}://{one.authority}{one.path}") for one in found)
