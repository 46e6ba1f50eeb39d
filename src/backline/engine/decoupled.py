"""Models with the decoupled transaction policy, which give any number of responses per request, or none."""

from __future__ import annotations

from collections.abc import Callable

from backline.engine.errors import DecoupledModel
from backline.engine.ticket import Ticket


class DecoupledCheck:
    """Checks requests to a decoupled model before the model's usual check."""

    def __init__(self, model: str, check: Callable[[Ticket], None]) -> None:
        self._model = model
        self._check = check

    def __call__(self, ticket: Ticket) -> None:
        """Raises DecoupledModel if the caller takes only one response, else what the usual check raises."""
        if not ticket.takes_many:
            raise DecoupledModel(
                f"model '{self._model}' has a decoupled transaction policy, with any number of responses:"
                " request a stream"
            )
        self._check(ticket)
