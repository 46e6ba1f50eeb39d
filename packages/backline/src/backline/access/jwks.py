"""The public keys of a token issuer: JSON Web Key Sets (RFC 7517)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec

from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument

#: The maximum size of a key set in bytes.
MAX_SIZE = 1024 * 1024
#: Accepted sizes of RSA keys in bits. Verifying with larger keys would take too long, and smaller keys are
#: too weak.
_RSA_BITS = range(2048, 4097)
#: The maximum size of an RSA exponent in bits. Verifying with larger exponents takes longer; nearly all are
#: 65537.
_EXPONENT_BITS = 33
#: The members of a key from which its thumbprint is computed (RFC 7638, section 3.2; RFC 8037, section 2), in
#: order.
_MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}
#: The algorithms that each type of key and curve supports.
_ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key, and the algorithms whose signatures it can verify. `id` is its "kid", or empty if it has
    none; `thumbprint` identifies it by its contents.
    """

    id: str
    algorithms: frozenset[str]
    thumbprint: str
    key: Any


def read_key_set(content: bytes, where: str) -> tuple[SigningKey, ...]:
    """Returns the usable keys of a set; keys for other purposes are left out. Errors refer to the set as
    `where`.

    Raises InvalidArgument if `content` is not a key set, contains a private key, or has no usable key.
    """
    try:
        entries = msgspec.json.decode(content, type=dict[str, Any])["keys"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise KeyError
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        raise InvalidArgument(
            f"{where} is not a JSON Web Key Set; expected an object with a list 'keys'"
        ) from None
    if any("d" in entry for entry in entries):
        raise InvalidArgument(f"{where} contains a private key: replace it, and publish only public keys")
    keys = tuple(key for entry in entries if (key := _read_key(entry)) is not None)
    if not keys:
        raise InvalidArgument(
            f"{where} has no key that this server can verify signatures with; expected a signing key: RSA"
            f" of {_RSA_BITS.start} to {_RSA_BITS.stop - 1} bits, EC on P-256, or Ed25519"
        )
    return keys


@decodable
class _Entry(msgspec.Struct, frozen=True):
    """The members that decide how a key may be used. PyJWT reads the key itself from the other members."""

    kty: str
    kid: str = ""
    alg: str | None = None
    use: str = "sig"
    key_ops: list[str] = msgspec.field(default_factory=lambda: ["verify"])
    crv: str | None = None


def _read_key(given: dict[str, Any]) -> SigningKey | None:
    """Reads one key. Returns None for a key that is malformed, unsupported, or not for signatures."""
    try:
        entry = msgspec.convert(given, _Entry)
    except msgspec.ValidationError:
        return None
    possible = _ALGORITHMS.get((entry.kty, None if entry.kty == "RSA" else entry.crv), ())
    usable = frozenset(possible if entry.alg is None else {entry.alg}.intersection(possible))
    if not usable or entry.use != "sig" or "verify" not in entry.key_ops:
        return None
    try:
        key = jwt.PyJWK(given, min(usable)).key
    except (jwt.PyJWTError, TypeError, ValueError):
        return None
    if entry.kty == "RSA" and (
        key.key_size not in _RSA_BITS or key.public_numbers().e.bit_length() > _EXPONENT_BITS
    ):
        return None
    members = {member: given[member] for member in _MEMBERS[entry.kty]}
    thumbprint = hashlib.sha256(msgspec.json.encode(members, order="sorted")).hexdigest()
    return SigningKey(entry.kid, usable, thumbprint, key)
