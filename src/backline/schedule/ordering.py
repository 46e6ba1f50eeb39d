"""Answers in the order in which requests were taken from the queue, although their batches end in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from backline.engine.errors import BacklineError
from backline.engine.messages import InferResponse
from backline.engine.ticket import Ticket


class Answer:
    """What came of a request: a response, or an error; with neither, its responses were given before."""

    __slots__ = ("done", "error", "response", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.response: InferResponse | None = None
        self.error: BacklineError | None = None
        self.done = False


class AnswerOrder:
    """Holds answers back until all earlier ones were given."""

    __slots__ = ("_answers", "_places")

    def __init__(self) -> None:
        self._answers: deque[Answer] = deque()
        self._places: dict[Ticket, Answer] = {}

    @property
    def held(self) -> int:
        """The requests that were started and whose answers were not given yet."""
        return len(self._answers)

    def start(self, tickets: Sequence[Ticket]) -> None:
        """Gives requests that are about to run the next places."""
        for ticket in tickets:
            answer = self._places[ticket] = Answer(ticket)
            self._answers.append(answer)

    def finish(
        self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None
    ) -> list[Answer]:
        """Notes what came of a started request, and gives the answers whose turn it is now."""
        answer = self._places.pop(ticket)
        answer.response, answer.error, answer.done = response, error, True
        return self._due()

    def withdraw(self, ticket: Ticket) -> list[Answer]:
        """Takes a started request out, which has not run after all, and gives the answers whose turn it is now."""
        self._answers.remove(self._places.pop(ticket))
        return self._due()

    def _due(self) -> list[Answer]:
        given: list[Answer] = []
        while self._answers and self._answers[0].done:
            given.append(self._answers.popleft())
        return given
