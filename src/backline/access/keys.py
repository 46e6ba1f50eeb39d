"""API keys. The server knows only their hashes."""

from __future__ import annotations

import hashlib
import secrets

#: The start of every generated key, by which secret scanners recognise a leaked key.
PREFIX = "bk_"
#: The minimum length of a key in characters, because a shorter one could be guessed.
MIN_LENGTH = 16
#: The maximum length of a key in characters. Longer header values are refused without hashing them.
MAX_LENGTH = 512


def generate_key() -> str:
    """Returns a new key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str | bytes) -> str:
    """Returns the SHA-256 of a key in hex.

    No slow password hash is needed: nobody can try 2**256 random keys. The time that a lookup takes reveals
    nothing about the known keys, since a caller cannot choose the hash of the key that it sends.
    """
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()
