"""Answers in the order in which requests were taken from the queue, although their batches end in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse


class Answer:
    """What came of a request: a response, or an error; with neither, its responses were given before."""

    __slots__ = ("done", "error", "request", "response")

    def __init__(self, request: InferRequest) -> None:
        self.request = request
        self.response: InferResponse | None = None
        self.error: BacklineError | None = None
        self.done = False


class AnswerOrder:
    """Holds answers back until all earlier ones were given."""

    __slots__ = ("_answers", "_places")

    def __init__(self) -> None:
        self._answers: deque[Answer] = deque()
        self._places: dict[InferRequest, Answer] = {}

    @property
    def held(self) -> int:
        """The requests that were started and whose answers were not given yet."""
        return len(self._answers)

    def start(self, requests: Sequence[InferRequest]) -> None:
        """Gives requests that are about to run the next places."""
        for request in requests:
            answer = self._places[request] = Answer(request)
            self._answers.append(answer)

    def finish(
        self, request: InferRequest, response: InferResponse | None, error: BacklineError | None
    ) -> list[Answer]:
        """Notes what came of a started request, and gives the answers whose turn it is now."""
        answer = self._places.pop(request)
        answer.response, answer.error, answer.done = response, error, True
        return self._due()

    def withdraw(self, request: InferRequest) -> list[Answer]:
        """Takes a started request out, which has not run after all, and gives the answers whose turn it is now."""
        self._answers.remove(self._places.pop(request))
        return self._due()

    def _due(self) -> list[Answer]:
        given: list[Answer] = []
        while self._answers and self._answers[0].done:
            given.append(self._answers.popleft())
        return given
