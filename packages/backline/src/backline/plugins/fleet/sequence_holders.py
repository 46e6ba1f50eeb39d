"""Remembers, for each sequence that other servers run, which caller began it and which server runs it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from backline.engine.ticket import Listener, Ticket
from backline.schedule.sequences.table import begun_by_another
from backline_client.balance.open_sequences import OpenSequences
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse

#: The minimum number of seconds for which a sequence belongs to its caller after a request. The other servers
#: count from the end of the request, which may be later.
_LEAST = 60.0
#: The maximum number of sequences of a version that are remembered.
_MOST = 65536


class RemoteSequences:
    """The open sequences of a version that other servers run. Loads of the same version share this object, so
    that sequences continue when the version is reloaded.
    """

    def __init__(self) -> None:
        #: When the last request of each sequence arrived, by the id of the sequence.
        self.arrivals: OpenSequences[float] = OpenSequences(_MOST)
        #: The URL of the server that runs each sequence.
        self.servers: OpenSequences[str] = OpenSequences(_MOST)


class HolderCheck:
    """A check of requests that runs `check`, and then refuses requests of sequences that another caller has
    begun.

    Security: the other servers cannot distinguish the callers, because all requests come from this server.
    `idle_seconds` is the time after which the other servers end an idle sequence. `opened` records the open
    sequences.
    """

    def __init__(
        self,
        name: str,
        check: Callable[[Ticket], None],
        idle_seconds: float,
        opened: OpenSequences[float],
    ) -> None:
        self._name = name
        self._check = check
        self._idle = max(idle_seconds, _LEAST)
        self._open = opened

    def __call__(self, ticket: Ticket) -> None:
        """Raises InvalidArgument if the request does not fit the model, and Forbidden if its sequence belongs
        to another caller.
        """
        self._check(ticket)
        step = ticket.request.sequence
        if step is None or not step.id:
            return
        now = monotonic()
        holder, seen = self._open.get(step.id) or (ticket.identity, now)
        if holder != ticket.identity and now - seen < self._idle:
            raise begun_by_another(self._name, step.id)
        self._open.keep(step.id, ticket.identity, now)
        if step.end:
            ticket.listen(_End(self._open, step.id, now))


class _End(Listener):
    """Forgets a sequence when its last request succeeds.

    Security: if the request fails or is refused, the sequence may still be open on the other server.
    """

    __slots__ = ("_id", "_open", "_seen")

    def __init__(self, opened: OpenSequences[float], id: int | str, seen: float) -> None:
        self._open = opened
        self._id = id
        self._seen = seen

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        kept = self._open.get(self._id)
        # The caller may have begun the sequence again in the meantime.
        if error is None and kept == (ticket.identity, self._seen):
            self._open.drop(self._id)
