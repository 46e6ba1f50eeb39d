"""Remembers which target a request went to, so that feedback about its response can be joined."""

from __future__ import annotations

from typing import Final

from backline_client.values.errors import Forbidden, NotFound

#: The number of requests of a route that are remembered at least, if they have ids; twice as many at most.
REMEMBERED: Final = 50_000
_LONGEST_ID = 128


class Sent:
    """The last requests of one route that have ids: who sent them, and the target that they went to."""

    def __init__(self) -> None:
        self._newer: dict[str, tuple[str, str]] = {}
        self._older: dict[str, tuple[str, str]] = {}

    def keep(self, id: str, identity: str, target: str) -> None:
        """Remembers a request. A later request with the same id replaces it."""
        if len(id) > _LONGEST_ID:
            return
        if len(self._newer) >= REMEMBERED:
            self._newer, self._older = {}, self._newer
        self._newer[id] = identity, target

    def take(self, id: str, identity: str | None) -> str:
        """Returns the target of a request, and forgets the request, because feedback counts once.

        `identity` must be that of the request's sender; None stands for a caller who may give feedback to any
        request.
        Raises NotFound for an unknown request, and Forbidden for that of another sender.
        """
        for known in (self._newer, self._older):
            found = known.get(id)
            if found is not None:
                if identity is not None and identity != found[0]:
                    raise Forbidden(
                        "only the sender of a request, or a caller with the scope 'manage' for the route, may"
                        " give feedback to it"
                    )
                del known[id]
                return found[1]
        raise NotFound(
            f"no request with the id '{id[:64]}' waits for feedback: send requests with an id of at most"
            f" {_LONGEST_ID} characters, and feedback once, among the last {REMEMBERED} requests"
        )
