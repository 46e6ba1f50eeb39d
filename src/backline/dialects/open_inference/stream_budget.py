"""How much one gRPC stream may have in flight."""

from __future__ import annotations

#: Requests of one stream that are in flight, and answers that wait to be sent; the client's next requests are not read before one has left.
MAX_IN_FLIGHT = 64
#: Bytes of those requests and answers, and of the answers that are to be expected; one request alone may have more.
MAX_BYTES = 32 * 1024 * 1024
#: Answers that wait to be sent, and their bytes, above which decoupled models are to wait; they go on at half as much.
MAX_WAITING = 64
MAX_WAITING_BYTES = 1024 * 1024
_MAX_REMEMBERED = 1024


class StreamBudget:
    """Counts what one stream has in flight. `answer_sizes` has the bytes of the last answer of each model, and is kept up."""

    def __init__(self, answer_sizes: dict[str, int]) -> None:
        self._answer_sizes = answer_sizes
        self._requests = 0
        self._request_bytes = 0
        #: By model: requests whose answer comes all at once.
        self._expected: dict[str, int] = {}
        self._waiting = 0
        self._waiting_bytes = 0

    def begun(self, size: int, model: str | None) -> None:
        """A request of `size` bytes is in flight; `model` is the one whose only answer is to come, None where answers can be held back."""
        self._requests += 1
        self._request_bytes += size
        if model is not None:
            self._expected[model] = self._expected.get(model, 0) + 1

    def ended(self, size: int, model: str | None, answer: int | None) -> None:
        """That request is done, with an answer of so many bytes; None for a failure."""
        self._requests -= 1
        self._request_bytes -= size
        if model is None:
            return
        if self._expected.get(model, 0) > 1:
            self._expected[model] -= 1
        else:
            self._expected.pop(model, None)
        if answer is not None:
            if len(self._answer_sizes) >= _MAX_REMEMBERED:
                self._answer_sizes.clear()
            self._answer_sizes[model] = answer

    def waits(self, size: int) -> None:
        """An answer waits to be sent."""
        self._waiting += 1
        self._waiting_bytes += size

    def sent(self, size: int) -> None:
        """An answer was sent."""
        self._waiting -= 1
        self._waiting_bytes -= size

    @property
    def has_room(self) -> bool:
        """Whether one more request may be read."""
        in_flight = self._requests + self._waiting
        if not in_flight:
            return True
        expected = sum(self._answer_sizes.get(model, 0) * count for model, count in self._expected.items())
        return in_flight < MAX_IN_FLIGHT and self._request_bytes + self._waiting_bytes + expected < MAX_BYTES

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be sent that decoupled models should make no more."""
        return self._waiting >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def wants_responses(self) -> bool:
        """Whether so little waits to be sent that they may go on."""
        return self._waiting <= MAX_WAITING // 2 and self._waiting_bytes <= MAX_WAITING_BYTES // 2
