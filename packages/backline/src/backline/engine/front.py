"""What may stand in front of the models: a front serves a name that requests use like a model's, such as a
route that spreads requests over versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from backline.engine.ticket import Ticket


class Front(Protocol):
    """Decides which models serve the requests for one name without a version. Used only on the event loop."""

    def take(self, ticket: Ticket) -> bool:
        """Decides on a request, before it is checked. Either names the chosen model in the ticket's request
        and returns False, and the engine submits the ticket; or owns the ticket, submits stand-ins, and
        returns True. Raises BacklineError if the request is refused.
        """

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        """The models that may serve requests, each with a version or label; "" is the default version. The
        first that is ready describes the inputs and outputs. Invariant: no chain of fronts is a cycle.
        """


class Fronts(dict[str, Front]):
    """The fronts of an engine, by the name that they serve. `plugins` are the plug-ins that made them, by
    name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plugins: dict[str, object] = {}
