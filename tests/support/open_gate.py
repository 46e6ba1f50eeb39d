"""A gate for tests of the wire alone."""

from __future__ import annotations

from collections.abc import Mapping

from backline.wire.application import Gate


class OpenGate(Gate):
    """Lets all requests in, and has the wire ask for each."""

    def __init__(self) -> None:
        self.own_hosts = set()

    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], *, local: bool
    ) -> str | None:
        return None
