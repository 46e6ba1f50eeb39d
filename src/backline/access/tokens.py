"""Decides what the holder of a token (JWT, RFC 7519) may do, from the claims of its issuer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from backline.access.identity import Grant, Identity
from backline.access.quota import Quota
from backline.access.scope import Scope

#: Signature algorithms that a token may use (RFC 7518, section 3.1; RFC 8037). All are asymmetric: with a
#: symmetric one, anyone who knows the public key could sign. Curves above 256 bits are missing because
#: verifying a signature would block the event loop for more than a millisecond.
Algorithm: TypeAlias = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "EdDSA"]


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """The content of a verified token.

    `key` is the thumbprint of the key that signed it, and `expires` is in seconds of time.time().
    """

    issuer: str
    subject: str
    audiences: frozenset[str]
    expires: float
    algorithm: str
    key: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenRule:
    """A rule that says which tokens of one issuer are accepted, and what they allow.

    `jwks` is the file or URL of the issuer's keys. The values of `claim` are looked up in `scopes`. A dot in
    `claim` selects a member of an object, unless a claim has exactly that name. `leeway` is in seconds. The
    `quotas` apply to each subject, across all of its tokens.
    """

    issuer: str
    audiences: frozenset[str]
    jwks: str
    algorithms: frozenset[str]
    claim: str
    scopes: Mapping[str, frozenset[Scope]]
    models: tuple[str, ...] = ("*",)
    leeway: float = 30.0
    quotas: tuple[Quota, ...] = ()

    def identify(self, claims: Claims) -> Identity | None:
        """Returns the identity of a token's holder; None if the token is not for this server."""
        if not self.audiences & claims.audiences or claims.algorithm not in self.algorithms:
            return None
        granted = frozenset(
            scope for value in self._values(claims.payload) for scope in self.scopes.get(value, ())
        )
        expires = claims.expires + self.leeway
        grants = (Grant(granted, self.models),)
        return Identity(claims.subject, grants, expires, kind="token", quotas=self.quotas)

    def _values(self, payload: Mapping[str, Any]) -> list[str]:
        """Returns the strings in the claim: a list, or words separated by spaces (RFC 8693, section 4.2)."""
        found: Any = payload.get(self.claim)
        if found is None:
            found = payload
            for step in self.claim.split("."):
                found = found.get(step) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found.split()
        return [value for value in found if isinstance(value, str)] if isinstance(found, list) else []
