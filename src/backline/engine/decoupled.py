"""Models with the decoupled transaction policy: any number of responses to a request, none included."""

from __future__ import annotations

from collections.abc import Callable

from backline.engine.errors import DecoupledModel
from backline.engine.ticket import Ticket


class DecoupledCheck:
    """The check of the requests of a decoupled model, before the check that every model has."""

    def __init__(self, model: str, check: Callable[[Ticket], None]) -> None:
        self._model = model
        self._check = check

    def __call__(self, ticket: Ticket) -> None:
        """Raises DecoupledModel when the caller takes one response only, else what the model's check raises."""
        if not ticket.takes_many:
            raise DecoupledModel(
                f"model '{self._model}' has a decoupled transaction policy: it gives any number of responses, so ask for a stream of them"
            )
        self._check(ticket)
