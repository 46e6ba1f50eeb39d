"""Identifies callers by their credentials and checks what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from backline.access.identity import Identity, anonymous
from backline.access.keys import MAX_LENGTH, hash_key
from backline.access.scope import Scope
from backline.engine.errors import Unauthenticated
from backline.memo import Memo

AUTHORIZATION = b"authorization"
API_KEY = b"x-api-key"
#: How many credentials are remembered, so that each is hashed once.
_MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Policy:
    """The identities that a server knows. `keys` maps the hash of each key to its identity."""

    anonymous: Identity
    keys: Mapping[str, Identity] = field(default_factory=dict)


#: The end of error texts if no identity is configured and other machines can reach the server's address.
_CLOSED = (
    ", as the server listens on a network without knowing any keys; give it some with --auth FILE (see"
    " 'backline keys create --help'), or allow everything to everybody with --insecure-open"
)
UNCONFIGURED = Policy(anonymous((Scope.INFER, Scope.READ, Scope.METRICS), cure=_CLOSED))


class Access:
    """Maps the header fields or metadata of a request to its identity. Lives on the event loop.

    Invariant: a changed policy also applies to the identities that open streams already carry. Each either
    takes over its new permissions or is revoked.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: Memo[bytes, Identity] = Memo(_MAX_REMEMBERED)

    @property
    def policy(self) -> Policy:
        return self._policy

    def use(self, policy: Policy) -> None:
        """Replaces the policy."""
        before = self._policy
        before.anonymous.become(policy.anonymous)
        keys = dict(policy.keys)
        for hashed, identity in before.keys.items():
            if hashed in keys:
                identity.become(keys[hashed])
                keys[hashed] = identity
            else:
                identity.revoked = True
        self._policy = replace(policy, anonymous=before.anonymous, keys=keys)
        self._known.clear()

    def identify(self, headers: Mapping[bytes, bytes]) -> Identity:
        """The identity of a request with these fields. The first credential found decides.

        Raises Unauthenticated if that credential is unknown: a request with a wrong key never passes as one
        without a key.
        """
        given = headers.get(AUTHORIZATION)
        if given is None:
            given = headers.get(API_KEY)
            if given is None:
                return self._policy.anonymous
        known = self._known.get(given)
        return self._identify(given) if known is None else known

    def _identify(self, given: bytes) -> Identity:
        scheme, separator, rest = given.strip().partition(b" ")
        if separator and scheme.lower() != b"bearer":
            shown = scheme[:20].decode("ascii", "replace")
            raise Unauthenticated(
                f"the authorization scheme '{shown}' is not supported; send 'Authorization: Bearer KEY'"
            )
        key = rest.strip() if separator else scheme
        identity = self._policy.keys.get(hash_key(key)) if len(key) <= MAX_LENGTH else None
        if identity is None:
            raise Unauthenticated("the key is unknown to this server, or it has been revoked")
        return self._known.keep(given, identity)
