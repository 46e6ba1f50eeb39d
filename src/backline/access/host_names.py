"""The names that a server goes by, as clients put them into the Host field."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from backline.engine.errors import InvalidArgument

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
