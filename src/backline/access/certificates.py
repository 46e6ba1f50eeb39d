"""Rules that identify callers by their client certificates."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backline.access.identity import Grant, Identity
from backline.access.quota import Quota
from backline.engine.errors import InvalidArgument
from backline.wire.application import Certificate

#: The kinds of subject alternative names, in lower case and as the ssl module spells them.
_KINDS = {"dns": "DNS", "email": "email", "uri": "URI", "ip": "IP Address"}
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9.]*=.+", re.DOTALL).fullmatch
#: A comma that does not separate attributes has a backslash before it (RFC 4514, section 2.4).
_SEPARATOR = re.compile(r"(?<!\\),")


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """A rule that identifies the holders of certificates with all of `subject` and all of `names`."""

    name: str
    subject: frozenset[str]
    names: frozenset[str]
    grant: Grant
    #: When the rule expires, in seconds of time.time(); None for never.
    expires: float | None = None
    #: Quotas that all certificates to which the rule applies share.
    quotas: tuple[Quota, ...] = ()

    def identify(self, certificate: Certificate) -> Identity | None:
        """Returns the identity of a certificate's holder; None if the rule does not apply."""
        if not (self.subject <= certificate.subject and self.names <= certificate.names):
            return None
        expires = certificate.expires if self.expires is None else min(self.expires, certificate.expires)
        return Identity(self.name, (self.grant,), expires, kind="certificate", quotas=self.quotas)


def parse_subject(text: str) -> frozenset[str]:
    """Returns the attributes of a subject such as "CN=app, O=Example".

    Raises InvalidArgument if there are none, or one is malformed.
    """
    attributes = [part.strip().replace("\\,", ",") for part in _SEPARATOR.split(text)]
    for attribute in attributes:
        if _ATTRIBUTE(attribute) is None:
            raise InvalidArgument(
                f"the subject '{text}' is not a list of attributes such as 'CN=app' or 'CN=app, O=Example'"
            )
    return frozenset(attributes)


def parse_alternative_name(text: str) -> str:
    """Returns a subject alternative name such as "DNS:app.example.org", spelt as the ssl module spells it.

    Raises InvalidArgument if its kind is unknown.
    """
    kind, _, value = text.partition(":")
    spelt = _KINDS.get(kind.strip().lower())
    if spelt is None or not value:
        raise InvalidArgument(
            f"the alternative name '{text}' does not begin with its kind: DNS:app.example.org,"
            " email:app@example.org, URI:spiffe://example.org/app or IP:10.0.0.7"
        )
    return f"{spelt}:{value.lower() if spelt == 'DNS' else value}"


def describe(certificate: Certificate) -> str:
    """Returns the names in a certificate, for error texts."""
    told = ", ".join((*sorted(certificate.subject), *sorted(certificate.names)))
    return told[:200] or "without a name"
