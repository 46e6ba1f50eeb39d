"""Decides which requests from web pages to admit, based on the route's scope and the header fields.

Any page in a developer's browser can send requests to a server on the developer's machine. The page cannot
read the responses, unless it rebinds DNS. If clients need no keys, only the header fields set by the browser
distinguish requests of the page from those of the developer.

Also determines which addresses other machines can reach.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct, field

from backline.access.scope import CHANGING, GUARDED, Scope
from backline_client.values.errors import InvalidArgument

#: Content types that a form can send, or that a script can send without a preflight request (Fetch standard,
#: "CORS-safelisted request-header").
_FORM_TYPES = frozenset((b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"))
_SENT_BY_PAGES = frozenset((b"origin", b"referer", b"sec-fetch-site", b"accept-language"))
#: The value of --allowed-host that lets programs address the server by any name.
ANY_HOST = "*"
_OWN_SITES = frozenset((b"same-origin", b"none"))
_ORIGIN = r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
#: Matches a host with an optional port (RFC 9110, section 7.2). An IPv6 address is in brackets, and may have
#: a zone, which some clients send.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)(?:%[a-z0-9._~-]+)?\]|([^\s\[\]:/@,]+))(?::[0-9]*)?")
#: Top-level domains in which nobody can register a name (RFC 6762, ICANN's resolution 2024.07.29.06), and the
#: domain of services in Kubernetes.
_PRIVATE = (".internal", ".local", ".svc")
_NAME = r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"


class HostNames(Struct, frozen=True):
    """The host names of this server, against which Host fields are checked.

    In DNS rebinding, a page is loaded from the attacker's host name, which then resolves to this server's
    address. The browser sees one origin, so only the Host field shows that the request was meant for another
    server. Names whose address an attacker cannot choose are safe: names of the loopback address (RFC 6761,
    section 6.3), and IP addresses, which are not resolved at all. All other names must be known: listed in
    `names`, in lower case, or below one of `suffixes`, such as ".example.org".
    """

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> HostNames:
        """Builds a HostNames from the command line. Raises InvalidArgument for an invalid host name."""
        known = [parse_host_name(name) for name in names]
        return cls(
            frozenset(name for name in known if name[0] != "*"),
            tuple(name[1:] for name in known if name[0] == "*"),
        )

    def include(self, host: bytes) -> bool:
        """Returns whether a Host field names this server. Ports are ignored, because port forwarding changes
        them.
        """
        name = host_name(host)
        if name is None:
            return False
        if name == "localhost" or name.endswith((".localhost", *self.suffixes)) or name in self.names:
            return True
        return _is_address(name)

    def may_read(self, host: bytes) -> bool:
        """Returns whether a Host field has a name of this server, or a name that no page on the internet has.

        DNS rebinding needs a name that the attacker can register. Single-label names and names in private
        domains cannot be registered, and programs in containers and clusters use them.
        """
        if self.include(host):
            return True
        name = host_name(host)
        return name is not None and name != "" and ("." not in name or name.endswith(_PRIVATE))


def host_name(host: bytes) -> str | None:
    """Returns the name or address in a Host field, in lower case; None if malformed."""
    found = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    if found is None:
        return None
    address, name = found.groups()
    if address is not None:
        return address if ":" in address and _is_address(address) else None
    return str(name).removesuffix(".")


def parse_host_name(text: str) -> str:
    """Returns a host name of the server in lower case; "*.example.org" means any name below example.org.

    Raises InvalidArgument if `text` is not a host name.
    """
    name = text.strip().lower().removesuffix(".")
    if re.fullmatch(_NAME, name) is None:
        raise InvalidArgument(
            f"'{text}' is not a host name: write only the name, such as models.example.org,"
            " *.example.org for all names below example.org, or * to allow any name"
        )
    return name


def parse_allowed_host(text: str) -> str:
    """Returns ANY_HOST, or a host name as `parse_host_name` does.

    Raises InvalidArgument if `text` is neither.
    """
    return ANY_HOST if text.strip() == ANY_HOST else parse_host_name(text)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class BrowserPolicy(Struct, frozen=True):
    """The rules for web pages. `hosts` are the server's names, and `origins` the allowed origins."""

    hosts: HostNames = field(default_factory=HostNames)
    origins: frozenset[bytes] = frozenset()
    #: Whether programs may send any Host field; a browser's Host field must still name this server.
    any_host_for_programs: bool = False

    @classmethod
    def of(cls, *, hosts: Collection[str] = (), origins: Iterable[str] = ()) -> BrowserPolicy:
        """Builds a policy from the host names (or ANY_HOST) and the origins given on the command line.

        Raises InvalidArgument if one of them is invalid.
        """
        named = [host for host in hosts if host != ANY_HOST]
        allowed = frozenset(parse_origin(origin).encode() for origin in origins)
        return cls(HostNames.of(named), allowed, any_host_for_programs=ANY_HOST in hosts)

    def sharing(self, headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        """Returns the response header fields that let the page that sent the request read the response (Fetch
        standard, "HTTP-CORS protocol"). Returns no fields if the page's origin is not allowed.

        Credentials are not allowed, so "*" exposes all response fields, such as those that say where binary
        tensors begin.
        """
        origin = headers.get(b"origin")
        if origin is None or origin not in self.origins:
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", b"*"),
        )

    def refusal(self, scope: Scope, headers: Mapping[bytes, bytes], *, local: bool) -> str | None:
        """Returns why a request is refused; None if it is allowed.

        `headers` has lower-case names; `local` means that the connection is over a Unix socket.

        The rules rely on fields that browsers always send and scripts cannot set: Origin on every request
        that is not GET or HEAD (Fetch standard, "append a request `Origin` header") and on every WebSocket
        handshake, which is the only kind of GET that runs a model; and Sec-Fetch-Site on requests to the
        loopback address or over TLS. Other clients send neither of these fields, nor Referer, and need a
        known Host only for requests that change something. `curl -d` is allowed, although it labels JSON as a
        form.

        A page that rebinds DNS may send a GET without any of these fields and read the response. Therefore,
        on routes that are not guarded, any Host sent over TCP must be one for which `may_read` is true, and
        no other field matters. Health checks need no known Host. With `any_host_for_programs`, no rule
        applies to requests that cannot come from a web page. Browsers themselves keep pages from reading
        responses of other origins.
        """
        if scope is Scope.HEALTH:
            return None
        if self.any_host_for_programs and not _from_browser(headers):
            return None
        if scope not in GUARDED:
            host = headers.get(b"host")
            return None if host is None or local or self.hosts.may_read(host) else _host_refusal(host)
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site")
        # Sec-Fetch-Mode does not identify a browser, because Node's fetch sends it too.
        browser = origin is not None or site is not None or b"referer" in headers
        if not browser and scope not in CHANGING:
            # Programs may send inference requests to any host name, such as that of a service in a cluster.
            return None
        host = headers.get(b"host")
        # HTTP/1.0 and HTTP/2 allow a request without Host, but no browser sends one.
        own = host is None or self.hosts.include(host)
        # No name resolves to a Unix socket. Requests from a proxy over a Unix socket still have an origin,
        # checked below.
        if not own and not local:
            return _host_refusal(host or b"")
        if origin not in self.origins:
            # Schemes are not compared, as a proxy may terminate TLS. Sec-Fetch-Site shows whether they
            # differ.
            if origin is not None and not (own and _authority(origin) == (host or b"").lower()):
                return _page_refusal("Origin", origin, origin)
            if site is not None and site not in _OWN_SITES:
                return _page_refusal("Sec-Fetch-Site", site, origin)
        # Browsers before 2020 omit Origin when they submit a form, but unlike curl they send Referer.
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if browser and kind in _FORM_TYPES:
            return (
                f"Content-Type '{_shown(kind)}' is refused from browsers, because a form on any web page can"
                " send it; send application/json"
            )
        return None


def parse_origin(text: str) -> str:
    """Returns an origin as browsers write it: in lower case, without its scheme's default port.

    Raises InvalidArgument if `text` is not an origin.
    """
    origin = text.strip().lower()
    if re.fullmatch(_ORIGIN, origin) is None:
        raise InvalidArgument(
            f"'{text}' is not an origin: write only scheme, host and port, such as"
            " https://console.example.org or http://localhost:3000"
        )
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "\0"))


def _host_refusal(host: bytes) -> str:
    name = host_name(host)
    cure = "" if name is None else f"; if it is, start the server with --allowed-host {_shown(name.encode())}"
    return (
        f"Host '{_shown(host)}' is not a known name of this server, so the request may come from a web page"
        f" that rebinds DNS{cure}"
    )


def _page_refusal(name: str, value: bytes, origin: bytes | None) -> str:
    """Returns the error text for a request from a page of another origin.

    `name` and `value` are the header field that shows this. `origin` is the page's origin, or None if it
    is unknown.
    """
    allowed = "ORIGIN" if origin in (None, b"null") else _shown(origin or b"")
    return (
        f"{name} '{_shown(value)}' belongs to a web page of another origin, which may not use this route;"
        f" to allow it, start the server with --cors-origin {allowed}"
    )


def _from_browser(headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether a request may come from a web page.

    Browsers send Accept-Language with every request, and a page can change but not remove it (Fetch standard,
    "HTTP-network-or-cache fetch"). This also detects a page that rebinds DNS, whose GET has no Origin.
    """
    if not _SENT_BY_PAGES.isdisjoint(headers):
        return True
    return headers.get(b"user-agent", b"").startswith(b"Mozilla/")


def _authority(origin: bytes) -> bytes:
    return origin.partition(b"://")[2].lower()


def _shown(value: bytes) -> str:
    return value[:100].decode("utf-8", "replace")


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address.

    Returns False for host names other than localhost, since they may resolve to any address.
    """
    if host.lower() in ("localhost", "127.0.0.1"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
