"""Verifies JSON Web Tokens (RFC 7519) that known issuers have signed, following RFC 8725."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import jwt

from backline.access.identity import Identity
from backline.access.jwks import SigningKey
from backline.access.key_ring import KeyRing
from backline.access.rules import Claims, TokenRule
from backline_client.values.errors import Unauthenticated, Unavailable

#: The maximum length of a token in bytes, so that no token takes long to read.
MAX_TOKEN = 8 * 1024
_MAX_NAME = 255
#: Times in a token must be below this number of seconds. Real times are far below it, even if the issuer
#: wrongly gives them in milliseconds.
_LATEST = 1e15
#: The members of an issuer's tokens that are no business of this server.
_UNCHECKED: Any = {"verify_iat": False, "verify_jti": False}


class TokenVerifier:
    """A verifier of tokens, with the keys of trusted issuers. Used only on the event loop.

    Until PyJWT has verified the signature, the claims can only select the issuer's rule and key, or lead to a
    refusal. Verifying takes the longest: about 50 us with RSA and 100 us with elliptic curves.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called after an issuer has withdrawn a key."""
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._rules: Mapping[str, TokenRule] = {}
        #: The keys of issuers, by the file or URL from which the keys are read.
        self._rings: dict[str, KeyRing] = {}

    def use(self, rules: Mapping[str, TokenRule]) -> None:
        """Replaces the rules, given by issuer. Keys of issuers that still have a rule are kept.

        Raises InvalidArgument if a file of keys is not valid; then nothing changes.
        """
        wanted = {rule.jwks for rule in rules.values()}
        new = {}
        try:
            for location in sorted(wanted - self._rings.keys()):
                new[location] = KeyRing(location, self._loop, self._changed)
        except BaseException:
            for ring in new.values():
                ring.close()
            raise
        self._rules = rules
        for location in self._rings.keys() - wanted:
            self._rings.pop(location).close()
        self._rings.update(new)

    def close(self) -> None:
        for ring in self._rings.values():
            ring.close()

    def identify(self, claims: Claims) -> Identity | None:
        """Returns the identity for verified claims; None if the token would no longer be accepted."""
        rule = self._rules.get(claims.issuer)
        if rule is None or not self._rings[rule.jwks].holds(claims.key):
            return None
        return rule.identify(claims)

    def verify(self, token: bytes) -> Claims:
        """Returns the claims of a valid token.

        Raises Unauthenticated for any other token, and Unavailable while its issuer's keys are being fetched.
        """
        if len(token) > MAX_TOKEN:
            raise _refused(f"is longer than {MAX_TOKEN} bytes")
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _refused(f"is malformed: {error}") from None
        header, payload = unverified["header"], unverified["payload"]
        issuer = payload.get("iss")
        rule = self._rules.get(issuer) if isinstance(issuer, str) else None
        if rule is None:
            raise _refused(f"is from the issuer '{_shown(issuer)}', which this server does not know")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in rule.algorithms:
            raise _refused(f"is signed with the algorithm '{_shown(algorithm)}', which is not allowed")
        if "crit" in header:  # PyJWT knows some of these fields, or none, depending on its version
            raise _refused("has a critical header field (crit), which this server does not support")
        # PyJWT accepts times that are texts.
        if not _is_time(payload.get("exp")):
            raise _refused("does not say when it expires (exp)")
        if not _is_time(payload.get("nbf", 0)):
            raise _refused("has an invalid start time (nbf)")
        key = self._find_key(rule, header.get("kid", ""), algorithm)
        _verify(token, rule, key, algorithm, payload)
        return Claims(
            rule.issuer,
            _read_subject(payload),
            _read_audiences(payload),
            float(payload["exp"]),
            algorithm,
            key.thumbprint,
            payload,
        )

    def _find_key(self, rule: TokenRule, name: object, algorithm: str) -> SigningKey:
        ring = self._rings[rule.jwks]
        key = ring.find(name, algorithm) if isinstance(name, str) else None
        if key is not None:
            return key
        if ring.look_again():
            raise Unavailable(
                f"the keys of the token's issuer '{rule.issuer}' are being fetched; try again in a second"
            )
        raise _refused(
            f"is signed with the key '{_shown(name)}', which its issuer '{rule.issuer}' does not have"
        )


def _verify(
    token: bytes, rule: TokenRule, key: SigningKey, algorithm: str, payload: Mapping[str, Any]
) -> None:
    """Raises Unauthenticated if a token is not signed with `key`, or is not for this server or this time.

    `payload` is the token's, for the error text.
    """
    try:
        jwt.decode(
            token,
            key.key,
            [algorithm],
            audience=rule.audiences,
            leeway=rule.leeway,
            options=_UNCHECKED,
        )
    except jwt.ExpiredSignatureError:
        raise _refused("has expired; ask its issuer for a new one") from None
    except jwt.ImmatureSignatureError:
        raise _refused("is not valid yet; check the clocks of its issuer and of this server") from None
    except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError):
        told = ", ".join(sorted(map(_shown, _read_audiences(payload)))) or "nobody"
        expected = ", ".join(sorted(rule.audiences))
        raise _refused(f"is for the audience '{told}', expected '{expected}'") from None
    except jwt.InvalidSignatureError:
        raise _refused("has an invalid signature: it was not signed with a key of its issuer") from None
    except jwt.PyJWTError as error:
        raise _refused(f"is invalid: {error}") from None


def _read_audiences(payload: Mapping[str, Any]) -> frozenset[str]:
    """Returns a token's audiences (RFC 7519, section 4.1.3)."""
    given = payload.get("aud")
    return frozenset(
        name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str)
    )


def _read_subject(payload: Mapping[str, Any]) -> str:
    subject = payload.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_NAME or not subject.isprintable():
        raise _refused("does not name its subject (sub)")
    return subject


def _is_time(value: object) -> TypeGuard[float]:
    # A larger number could overflow in the calculations that follow.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LATEST


def _shown(value: object) -> str:
    """Formats a claim for an error text. The claim is not verified, so it may be anything."""
    if not isinstance(value, str):  # Python may refuse to write large numbers and deep lists as text
        return "None" if value is None else "?"
    return value[:100] if value.isprintable() else "?"


def _refused(reason: str) -> Unauthenticated:
    return Unauthenticated(f"the token {reason}")
