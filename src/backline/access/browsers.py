"""What web pages may have a browser send to this server: a pure function of the scope of a route and the fields of a request.

A server on a developer's machine is within reach of every page that the developer's browser shows: a page cannot read answers of another
origin, but it can send requests. Without keys, only what the browser says of a request tells the page from the developer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from backline.access.scope import CHANGING, GUARDED, Scope
from backline.engine.errors import InvalidArgument

#: Media types that an HTML form can send, and a script without asking first (Fetch standard, "CORS-safelisted request-header").
_FORM_TYPES = frozenset((b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"))
_OWN_SITES = frozenset((b"same-origin", b"none"))
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?").fullmatch
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
#: RFC 9110, section 7.2: a host, perhaps with a port. An IPv6 address stands in brackets, perhaps with a zone, as some clients send.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)(?:%[a-z0-9._~-]+)?\]|([^\s\[\]:/@,]+))(?::[0-9]*)?").fullmatch
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch


@dataclass(frozen=True, slots=True)
class HostNames:
    """Decides whether a Host field names this server.

    A page that rebinds DNS is served under the attacker's name, and has that name resolve to this server's address afterwards. The
    browser then takes both for one origin, and only the Host field still tells them apart. Names that an attacker cannot have resolve
    to an address of their choice are safe: those of the loopback (RFC 6761, section 6.3) and addresses themselves, which are not
    resolved at all. All others have to be known: in lower case in `names`; `suffixes`, such as ".example.org", cover all names below.
    """

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> HostNames:
        """From names as the option takes them. Raises InvalidArgument."""
        known = [parse_host_name(name) for name in names]
        return cls(
            frozenset(name for name in known if name[0] != "*"),
            tuple(name[1:] for name in known if name[0] == "*"),
        )

    def include(self, host: bytes) -> bool:
        """Whether the value of a Host field names this server, on whichever port: what forwards ports changes them."""
        name = host_name(host)
        if name is None:
            return False
        if name == "localhost" or name.endswith((".localhost", *self.suffixes)) or name in self.names:
            return True
        return _is_address(name)


def host_name(host: bytes) -> str | None:
    """The name or the address in a Host field, in lower case; None if it is malformed."""
    found = _HOST(host.decode("latin-1").strip().lower())
    if found is None:
        return None
    address, name = found.groups()
    if address is not None:
        return address if ":" in address and _is_address(address) else None
    return str(name).removesuffix(".")


def parse_host_name(text: str) -> str:
    """A name that the server goes by, in lower case; "*.example.org" is any name below that. Raises InvalidArgument."""
    name = text.strip().lower().removesuffix(".")
    if _NAME(name) is None:
        raise InvalidArgument(
            f"'{text}' is no host name: write the name alone, such as models.example.org, or *.example.org for all below"
        )
    return name


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class BrowserPolicy:
    """`hosts` are the names of this server, `origins` those of pages whose requests are let in, as browsers write them."""

    hosts: HostNames = field(default_factory=HostNames)
    origins: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, *, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> BrowserPolicy:
        """From texts as the options take them. Raises InvalidArgument."""
        return cls(HostNames.of(hosts), frozenset(parse_origin(origin).encode() for origin in origins))

    def refusal(self, scope: Scope, headers: Mapping[bytes, bytes], *, local: bool) -> str | None:
        """Why a request must not have its way, None if it may. `headers` has lower-case names; `local` is a Unix socket.

        The rules rest on what browsers do, whatever a page asks for: they send Origin with every request that is not GET or HEAD (Fetch
        standard, "append a request `Origin` header"; no guarded route is either), and to the loopback or over TLS Sec-Fetch-Site as well.
        Neither can be set by a script. Clients that are not browsers send neither, nor Referer, so nothing is asked of them but, where
        something is changed, a Host that is known: `curl -d`, which calls JSON a form, is let in.
        """
        if scope not in GUARDED:
            return None
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site")
        # Sec-Fetch-Mode is no sign of a browser: Node's fetch sends it.
        browser = origin is not None or site is not None or b"referer" in headers
        if not browser and scope not in CHANGING:
            # Programs may infer under any name, such as that of a service in a cluster.
            return None
        host = headers.get(b"host")
        # Only HTTP/1.0 and HTTP/2 may leave Host out, and no browser does.
        own = host is None or self.hosts.include(host)
        # No name resolves to a Unix socket. What a proxy passes on through it still has an origin, which is checked below.
        if not own and not local:
            return _host_refusal(host or b"")
        if origin not in self.origins:
            # Of one origin by Host alone: nothing here knows whether a proxy speaks TLS. Where the schemes differ, the site does.
            if origin is not None and not (own and _authority(origin) == (host or b"").lower()):
                return _page_refusal("Origin", origin, origin)
            if site is not None and site not in _OWN_SITES:
                return _page_refusal("Sec-Fetch-Site", site, origin)
        # Browsers before 2020 left Origin out where a form was sent; then Referer tells them from curl.
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if browser and kind in _FORM_TYPES:
            return (
                f"Content-Type '{_shown(kind)}' is refused from a browser, because forms of any web page can send it;"
                " send application/json"
            )
        return None


def parse_origin(text: str) -> str:
    """An origin as browsers write it: in lower case, without the port that its scheme has anyway. Raises InvalidArgument."""
    origin = text.strip().lower()
    if _ORIGIN(origin) is None:
        raise InvalidArgument(
            f"'{text}' is no origin: write scheme, host and port alone, such as https://console.example.org or http://localhost:3000"
        )
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "\0"))


def _host_refusal(host: bytes) -> str:
    name = host_name(host)
    cure = "" if name is None else f"; if it is, start the server with --allowed-host {_shown(name.encode())}"
    return f"Host '{_shown(host)}' is not a known name of this server, as web pages that rebind DNS send it{cure}"


def _page_refusal(name: str, value: bytes, origin: bytes | None) -> str:
    """`origin` is that of the page, where it can be allowed."""
    allowed = "ORIGIN" if origin in (None, b"null") else _shown(origin or b"")
    return (
        f"{name} '{_shown(value)}' is that of a web page from elsewhere, which may not use this route;"
        f" to allow it, start the server with --cors-origin {allowed}"
    )


def _authority(origin: bytes) -> bytes:
    return origin.partition(b"://")[2].lower()


def _shown(value: bytes) -> str:
    return value[:100].decode("utf-8", "replace")
