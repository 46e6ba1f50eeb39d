"""The grpc-timeout field."""

from __future__ import annotations

import re

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class InvalidTimeout(ValueError):
    """The field is not a timeout."""


def parse_timeout(value: bytes) -> float:
    """Seconds of a grpc-timeout such as b"250m". Raises InvalidTimeout."""
    match = _TIMEOUT(value)
    if match is None:
        raise InvalidTimeout(
            f"grpc-timeout {value[:40].decode('latin-1')!r} is not up to eight digits and one of H, M, S, m, u, n"
        )
    return int(match[1]) * _SECONDS[match[2]]
