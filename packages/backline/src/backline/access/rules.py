"""Rules that identify callers by client certificates, or by the claims in tokens (JWT, RFC 7519)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from backline.access.identity import Grant, Identity
from backline.access.quota import Quota
from backline.access.scope import Scope
from backline.wire.application import Certificate
from backline_client.values.errors import InvalidArgument

#: The kinds of subject alternative names, in lower case and as the ssl module spells them.
_KINDS = {"dns": "DNS", "email": "email", "uri": "URI", "ip": "IP Address"}
_ATTRIBUTE = r"(?s)[A-Za-z][A-Za-z0-9.]*=.+"
#: A comma that does not separate attributes has a backslash before it (RFC 4514, section 2.4).
_SEPARATOR = re.compile(r"(?<!\\),")


class CertificateRule(Struct, frozen=True):
    """Identifies the holders of certificates that have all attributes in `subject` and all alternative names
    in `names`.
    """

    name: str
    subject: frozenset[str]
    names: frozenset[str]
    grant: Grant
    #: When the rule expires, in seconds of time.time(); None if it never expires.
    expires: float | None = None
    #: Quotas that all certificates to which the rule applies share.
    quotas: tuple[Quota, ...] = ()

    @property
    def identifier(self) -> str:
        """Distinguishes this rule from all others, also after a change of what it allows."""
        return f"certificate {self.name} {sorted(self.subject)} {sorted(self.names)}"

    def identify(self, certificate: Certificate) -> Identity | None:
        """Returns the identity of a certificate's holder; None if the rule does not apply."""
        if not (self.subject <= certificate.subject and self.names <= certificate.names):
            return None
        expires = certificate.expires if self.expires is None else min(self.expires, certificate.expires)
        return Identity(self.name, (self.grant,), expires, kind="certificate", quotas=self.quotas)


def parse_subject(text: str) -> frozenset[str]:
    """Returns the attributes of a subject such as "CN=app, O=Example".

    Raises InvalidArgument if the text has no attribute, or a malformed one.
    """
    attributes = [part.strip().replace("\\,", ",") for part in _SEPARATOR.split(text)]
    for attribute in attributes:
        if re.fullmatch(_ATTRIBUTE, attribute) is None:
            raise InvalidArgument(
                f"the subject '{text}' is not a list of attributes such as 'CN=app' or 'CN=app, O=Example'"
            )
    return frozenset(attributes)


def parse_alternative_name(text: str) -> str:
    """Returns a subject alternative name such as "DNS:app.example.org", spelt as the ssl module spells it.

    Raises InvalidArgument if the kind of name is missing or unknown, or nothing follows it.
    """
    kind, _, value = text.partition(":")
    spelt = _KINDS.get(kind.strip().lower())
    if spelt is None or not value:
        raise InvalidArgument(
            f"the alternative name '{text}' does not begin with its kind, as in DNS:app.example.org,"
            " email:app@example.org, URI:spiffe://example.org/app or IP:10.0.0.7"
        )
    return f"{spelt}:{value.lower() if spelt == 'DNS' else value}"


def describe(certificate: Certificate) -> str:
    """Returns the names in a certificate, for error texts."""
    told = ", ".join((*sorted(certificate.subject), *sorted(certificate.names)))
    return told[:200] or "without a name"


#: Signature algorithms that a token may use (RFC 7518, section 3.1; RFC 8037). All are asymmetric: with a
#: symmetric one, anyone who knows the public key could sign. Curves above 256 bits are missing because
#: verifying a signature would block the event loop for more than a millisecond.
Algorithm: TypeAlias = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "EdDSA"]


class Claims(Struct, frozen=True, eq=False):
    """The content of a verified token.

    `key` is the thumbprint of the key that signed the token, and `expires` is in seconds of time.time().
    """

    issuer: str
    subject: str
    audiences: frozenset[str]
    expires: float
    algorithm: str
    key: str
    payload: Mapping[str, Any]


class TokenRule(Struct, frozen=True):
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

    @property
    def identifier(self) -> str:
        """Distinguishes this rule from all others, also after a change of what it allows."""
        return f"token {self.issuer}"

    def identify(self, claims: Claims) -> Identity | None:
        """Returns the identity of a token's holder; None if the token's audiences or algorithm do not match
        the rule.
        """
        if not self.audiences & claims.audiences or claims.algorithm not in self.algorithms:
            return None
        granted = frozenset(
            scope for value in self._values(claims.payload) for scope in self.scopes.get(value, ())
        )
        expires = claims.expires + self.leeway
        grants = (Grant(granted, self.models),)
        return Identity(claims.subject, grants, expires, kind="token", quotas=self.quotas)

    def _values(self, payload: Mapping[str, Any]) -> list[str]:
        """Returns the strings in the claim, which is a list of strings, or one string of words separated by
        spaces (RFC 8693, section 4.2). Returns none for any other claim.
        """
        found: Any = payload.get(self.claim)
        if found is None:
            found = payload
            for step in self.claim.split("."):
                found = found.get(step) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found.split()
        return [value for value in found if isinstance(value, str)] if isinstance(found, list) else []
