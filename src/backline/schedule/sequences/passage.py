"""A request of a sequence on its way through an instance."""

from __future__ import annotations

from backline.engine.ticket import Ticket
from backline.schedule.sequences.table import Sequence
from backline.workers.instance import Remembers


class Passage:
    """What the request that an instance runs knows of the one it was made of.

    `instance` is where the model keeps what it knows of the sequence, if that may be lost.
    """

    __slots__ = ("instance", "sequence", "ticket")

    def __init__(self, sequence: Sequence, ticket: Ticket, instance: Remembers | None) -> None:
        self.sequence = sequence
        self.ticket = ticket
        self.instance = instance

    def is_remembered(self, *, begins: bool) -> bool:
        """Whether the model knows what came before in the sequence, where nothing did if that `begins` with this request."""
        if self.instance is None:
            return True
        memory = self.instance.memory
        if begins:
            self.sequence.memory = memory
        return self.sequence.memory is memory


def passage_of(ticket: Ticket) -> Passage:
    """That of a request which was handed to an instance."""
    passage: Passage = ticket.context
    return passage


def slot_of(ticket: Ticket) -> int:
    """The place on its instance of a request that was handed to it."""
    place = passage_of(ticket).sequence.place
    assert place is not None, "what runs has a place"
    return place[0]
