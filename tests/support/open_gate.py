"""A gate for tests of `wire` without access rules."""

from __future__ import annotations

from collections.abc import Mapping

from backline.wire.application import Denial, Fields, Gate, Ingress


class OpenGate(Gate):
    """Admits every request, while still making `wire` consult the gate for each one."""

    def __init__(self) -> None:
        self.own_hosts = set()

    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], ingress: Ingress
    ) -> str | None:
        return None

    def refused(self, denial: Denial, method: bytes, path: bytes, peer: str) -> None:
        """Never called, as no request is refused."""

    def sharing(self, headers: Mapping[bytes, bytes]) -> Fields:
        return ()
