"""A request of a sequence on its way through an instance."""

from __future__ import annotations

from backline.engine.messages import InferRequest
from backline.schedule.sequences.table import Sequence
from backline.workers.instance import Remembers


class Passage:
    """What the request that an instance runs knows of the one it was made of.

    `instance` is where the model keeps what it knows of the sequence, if that may be lost.
    """

    __slots__ = ("instance", "request", "sequence")

    def __init__(self, sequence: Sequence, request: InferRequest, instance: Remembers | None) -> None:
        self.sequence = sequence
        self.request = request
        self.instance = instance

    def is_remembered(self, *, begins: bool) -> bool:
        """Whether the model knows what came before in the sequence, where nothing did if that `begins` with this request."""
        if self.instance is None:
            return True
        memory = self.instance.memory
        if begins:
            self.sequence.memory = memory
        return self.sequence.memory is memory


def passage_of(request: InferRequest) -> Passage:
    """That of a request which was handed to an instance."""
    passage: Passage = request.context  # type: ignore[assignment]  # the batcher gave it
    return passage


def slot_of(request: InferRequest) -> int:
    """The place on its instance of a request that was handed to it."""
    place = passage_of(request).sequence.place
    assert place is not None, "what runs has a place"
    return place[0]
