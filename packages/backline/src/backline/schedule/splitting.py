"""Splits requests that have more items than the largest batch into parts, runs the parts, and joins the
responses to the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backline.engine.statistics import ComputeTimes, ModelStatistics
from backline.engine.ticket import Completion, Owner, Ticket
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.schedule.scheduler import Scheduler, Settings
    from backline.workers.batch import Batch
    from backline.workers.instance import Instance


#: The maximum number of parts per request. There must be a limit, because a small request can have any number
#: of items if its items have no elements.
MAX_PARTS = 4096


class SplittingQueue:
    """A queue that passes requests on to a scheduler, and splits requests with more than `limit` items. All
    methods must be called on the event loop.

    The parts are queued and batched like other requests, and their outputs are concatenated in order. If a
    part fails, expires or is refused, the whole request ends with that error, and parts that have not started
    do not run. The statistics count a single request, but every run of its parts.
    """

    def __init__(self, queue: Scheduler, limit: int, statistics: ModelStatistics) -> None:
        self._queue = queue
        self._limit = limit
        self._statistics = statistics

    @property
    def pending(self) -> int:
        """The number of queued requests. Each part counts as a request."""
        return self._queue.pending

    @property
    def running(self) -> int:
        return self._queue.running

    def submit(self, ticket: Ticket) -> None:
        """Queues a request or its parts.

        Raises Unavailable if the queue has no room for all parts, and InvalidArgument if there would be too
        many parts.
        """
        if ticket.batch_size <= self._limit:
            self._queue.submit(ticket)
            return
        if ticket.batch_size > self._limit * MAX_PARTS:
            raise InvalidArgument(
                f"a request with {ticket.batch_size} items for model '{ticket.request.model_name}'"
                f" is too large: the model runs at most {self._limit} items at a time, and a request is split"
                f" into at most {MAX_PARTS} parts; send several smaller requests"
            )
        whole = _Whole(ticket, self._limit, self._statistics)
        for part in whole.parts:
            self._queue.tally.set_aside(part, whole.part_ran)
        try:
            for part in whole.parts:
                self._queue.submit(part)
        except BacklineError:
            whole.end()
            for part in whole.parts:
                self._queue.tally.take_back(part)
            raise
        ticket.deadline = whole.parts[0].deadline  # the queue may have set an earlier deadline
        ticket.enqueue(whole)

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        self._queue.update(settings, instances=instances)

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        self._queue.replace_instances(instances)

    async def drain(self, limit: float) -> None:
        await self._queue.drain(limit)


def split(ticket: Ticket, limit: int, on_complete: Completion) -> list[Ticket]:
    """Creates stand-ins for the parts of a ticket. Each has `limit` items, except the last, which has the
    remaining items. The tensors of the stand-ins are views of the original tensors.
    """
    parts: list[Ticket] = []
    for start in range(0, ticket.batch_size, limit):
        end = min(start + limit, ticket.batch_size)
        inputs = {name: _rows(tensor, start, end) for name, tensor in ticket.request.inputs.items()}
        part = ticket.stand_in(on_complete, inputs=inputs)
        part.batch_size = end - start
        parts.append(part)
    return parts


def put_together(ticket: Ticket, responses: Sequence[InferResponse]) -> InferResponse:
    """Concatenates the responses to the parts, in order. Raises Internal if the shapes of the responses do
    not match.
    """
    first = responses[0]
    outputs = []
    for place, tensor in enumerate(first.outputs):
        arrays = [response.outputs[place].data for response in responses]
        if any(array.shape[1:] != tensor.shape[1:] for array in arrays):
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            raise Internal(
                f"output '{tensor.name}' of model '{first.model_name}' has the shapes {shapes}"
                " for the parts of one request; these may differ only in the first dimension"
            )
        data = np.concatenate(arrays)
        outputs.append(Tensor(tensor.name, tensor.datatype, data.shape, data))
    return InferResponse(first.model_name, first.model_version, ticket.request.id, outputs, first.parameters)


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    data = tensor.data[start:end]
    return Tensor(tensor.name, tensor.datatype, data.shape, data)


class _Whole(Owner):
    """A split ticket and the state of its parts."""

    def __init__(self, ticket: Ticket, limit: int, statistics: ModelStatistics) -> None:
        self.parts = split(ticket, limit, self.part_done)
        self._ticket = ticket
        self._statistics = statistics
        self._answers: dict[Ticket, InferResponse] = {}
        self._over = False
        self._failed = False
        self._started: list[int] = []
        self._ended = 0
        self._compute = ComputeTimes()

    def part_ran(self, batch: Batch) -> None:
        """Counts a batch that has run and that includes a part of the request."""
        outcome = batch.outcomes[0]
        if isinstance(outcome, InferResponse):
            self._started.append(batch.started_ns)
            self._ended = max(self._ended, batch.ended_ns)
            gathered, ran = batch.gathered_ns, batch.ran_ns
            self._compute.add(gathered - batch.started_ns, ran - gathered, batch.ended_ns - ran)
        elif not self._over and not self._failed:
            self._failed = True
            self._statistics.fail.add(1, batch.ended_ns - self._ticket.request.arrived_ns)

    def part_done(self, part: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        """Records the outcome of a part."""
        if response is not None:
            self._answers[part] = response
            if len(self._answers) < len(self.parts):
                return
            response, error = self._answer()
        self.end()
        self._ticket.complete(response, error)

    def _answer(self) -> tuple[InferResponse | None, BacklineError | None]:
        ticket = self._ticket
        try:
            response = put_together(ticket, [self._answers[part] for part in self.parts])
        except Internal as unlike:
            self._statistics.fail.add(1, self._ended - ticket.request.arrived_ns)
            return None, unlike
        started = min(self._started)
        self._statistics.record_in_parts(ticket, started, self._ended, self._compute)
        return response, None

    def cancelled(self, ticket: Ticket) -> None:
        """Cancels the parts, because the split ticket is cancelled; see Owner."""
        if not self._failed:  # otherwise the request is already counted as failed
            self._statistics.record_cancelled(ticket)
        self.end()

    def postponed(self, ticket: Ticket) -> None:
        for part in self.parts:
            part.deadline = ticket.deadline

    def end(self) -> None:
        """Cancels the parts that have not been completed."""
        self._over = True
        # The last part is cancelled first: cancelling a running part can free its instance, and the instance
        # would then start a later part that has not been cancelled yet.
        for part in reversed(self.parts):
            part.cancel()  # has no effect on completed parts
