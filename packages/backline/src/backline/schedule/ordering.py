"""Puts responses in the order in which requests started, even if batches end in a different order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from backline.engine.ticket import Ticket
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse


@dataclass(slots=True, eq=False)
class HeldOutcome:
    """The outcome of a request: a response or an error, or neither if the model is decoupled, because its
    responses have been sent one by one.
    """

    ticket: Ticket
    response: InferResponse | None = None
    error: BacklineError | None = None
    done: bool = False


class ResponseOrder:
    """Holds back the outcome of each request until all requests that started earlier have been completed."""

    __slots__ = ("_answers", "_places")

    def __init__(self) -> None:
        self._answers: deque[HeldOutcome] = deque()
        self._places: dict[Ticket, HeldOutcome] = {}

    @property
    def held(self) -> int:
        """The number of requests that have started but have not been completed."""
        return len(self._answers)

    def start(self, tickets: Sequence[Ticket]) -> None:
        """Adds requests that are about to run to the end of the order."""
        for ticket in tickets:
            answer = self._places[ticket] = HeldOutcome(ticket)
            self._answers.append(answer)

    def finish(
        self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None
    ) -> list[HeldOutcome]:
        """Records the outcome of a started request. Returns the outcomes that may now be sent, in order."""
        answer = self._places.pop(ticket)
        answer.response, answer.error, answer.done = response, error, True
        return self._due()

    def withdraw(self, ticket: Ticket) -> list[HeldOutcome]:
        """Removes a request that was started but did not run. Returns the outcomes that may now be sent, in
        order.
        """
        self._answers.remove(self._places.pop(ticket))
        return self._due()

    def _due(self) -> list[HeldOutcome]:
        given: list[HeldOutcome] = []
        while self._answers and self._answers[0].done:
            given.append(self._answers.popleft())
        return given
