"""API keys. The server knows only their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from backline.access.scope import Scope

#: The start of every generated key, by which secret scanners recognise a leaked key.
PREFIX = "bk_"
#: The minimum length of a key in characters, because a shorter key could be guessed.
MIN_LENGTH = 16
#: The maximum length of a key in characters. A longer value is not hashed; it can only be a token.
MAX_LENGTH = 512


#: Environment variables, meant for containers, that each contain one key, and the scopes of that key.
ENVIRONMENT_KEYS: Mapping[str, frozenset[Scope]] = {
    "BACKLINE_API_KEY": frozenset((Scope.INFER, Scope.READ, Scope.METRICS)),
    "BACKLINE_ADMIN_KEY": frozenset(Scope),
}


def generate_key() -> str:
    """Returns a new key with 256 random bits."""
    import secrets  # imported here, because servers generate no keys

    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str | bytes) -> str:
    """Returns the SHA-256 of a key in hex.

    No slow password hash is needed: nobody can try 2**256 random keys. The time that a lookup takes reveals
    nothing about the known keys, since a caller cannot choose the hash of the key that it sends.
    """
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def environment_has_keys() -> bool:
    """Returns whether any of the environment variables for keys is set."""
    return any(variable in os.environ for variable in ENVIRONMENT_KEYS)
