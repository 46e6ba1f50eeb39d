"""The gate between the wire and the dialects: asked with the head of a request, it refuses what the policies do not let in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from backline.access.browsers import BrowserPolicy
from backline.access.scope import Scope
from backline.wire.application import Gate

#: Host fields that are remembered, of each kind. Clients choose them, so there may be any number.
_MAX_HOSTS = 64


class ScopeGate(Gate):
    """Looks up the scope of the route, and asks the policy. A request that no route takes is let in: nothing happens but a 404."""

    def __init__(self, policy: BrowserPolicy, scope_of: Callable[[bytes, bytes], Scope | None]) -> None:
        self._policy = policy
        self._scope_of = scope_of
        self.own_hosts = set()
        self._others: set[bytes] = set()

    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], *, local: bool
    ) -> str | None:
        host = headers.get(b"host", b"")
        if host not in self.own_hosts and host not in self._others:
            known = self.own_hosts if self._policy.hosts.include(host) else self._others
            if len(known) >= _MAX_HOSTS:
                known.clear()
            known.add(host)
        scope = self._scope_of(method, path)
        return None if scope is None else self._policy.refusal(scope, headers, local=local)
