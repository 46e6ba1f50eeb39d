"""Requests with more items than a batch may have: run in parts, answered as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backline.engine.errors import BacklineError, Internal, InvalidArgument
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.statistics import ComputeTimes, ModelStatistics
from backline.engine.tensor import Tensor

if TYPE_CHECKING:
    from backline.schedule.scheduler import Scheduler, Settings
    from backline.workers.batch import Batch
    from backline.workers.instance import Instance


#: Parts of a request at most: items without elements cost their sender nothing.
MAX_PARTS = 4096


class SplittingQueue:
    """Hands requests on to a scheduler, those of more than `limit` items in parts. Lives on the event loop.

    The parts queue and are joined like any requests. Their answers are put together in order; the first that fails, expires or is refused
    ends the whole, and what has not run of it never does. The whole is counted as one request, its parts as runs.
    """

    def __init__(self, queue: Scheduler, limit: int, statistics: ModelStatistics) -> None:
        self._queue = queue
        self._limit = limit
        self._statistics = statistics

    @property
    def pending(self) -> int:
        """Requests that wait, parts for each."""
        return self._queue.pending

    @property
    def running(self) -> int:
        return self._queue.running

    def submit(self, request: InferRequest) -> None:
        """Queues a request or its parts. Raises Unavailable when there is no room for all of them, InvalidArgument for too many."""
        if request.batch_size <= self._limit:
            self._queue.submit(request)
            return
        if request.batch_size > self._limit * MAX_PARTS:
            raise InvalidArgument(
                f"a request of {request.batch_size} items for model '{request.model_name}' is too large: it runs {self._limit} at once,"
                f" in at most {MAX_PARTS} parts"
            )
        whole = _Whole(request, split(request, self._limit), self._statistics)
        for part in whole.parts:
            part.on_complete = whole.part_done
            self._queue.set_aside(part, whole.part_ran)
        try:
            for part in whole.parts:
                self._queue.submit(part)
        except BacklineError:
            whole.end()
            for part in whole.parts:
                self._queue.take_back(part)
            raise
        request.on_cancel = whole.cancelled

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        self._queue.update(settings, instances=instances)

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        self._queue.replace_instances(instances)

    async def drain(self, limit: float) -> None:
        await self._queue.drain(limit)


class _Part(InferRequest):
    """Some of the items of a request. It has the deadline of the whole, which may be put off while it waits, as others join that."""

    __slots__ = ("_whole",)

    def __init__(self, whole: InferRequest, inputs: dict[str, Tensor], items: int) -> None:
        self._whole = whole
        super().__init__(whole.model_name, inputs, whole.on_complete, deadline=whole.deadline)
        self.stand_for(whole)
        self.batch_size = items

    @property
    def deadline(self) -> float | None:
        return self._whole.deadline

    @deadline.setter
    def deadline(self, deadline: float | None) -> None:
        self._whole.deadline = deadline


def split(request: InferRequest, limit: int) -> list[InferRequest]:
    """Requests of `limit` items and one of the rest, which share the memory of the whole."""
    parts: list[InferRequest] = []
    for start in range(0, request.batch_size, limit):
        end = min(start + limit, request.batch_size)
        inputs = {name: _rows(tensor, start, end) for name, tensor in request.inputs.items()}
        parts.append(_Part(request, inputs, end - start))
    return parts


def put_together(request: InferRequest, responses: Sequence[InferResponse]) -> InferResponse:
    """The answer to a request of those to its parts, in order. Raises Internal when their outputs do not fit each other."""
    first = responses[0]
    outputs = []
    for place, tensor in enumerate(first.outputs):
        arrays = [response.outputs[place].data for response in responses]
        if any(array.shape[1:] != tensor.shape[1:] for array in arrays):
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            raise Internal(
                f"output '{tensor.name}' of model '{first.model_name}' has the shapes {shapes} for the parts of one request"
            )
        data = np.concatenate(arrays)
        outputs.append(Tensor(tensor.name, tensor.datatype, data.shape, data))
    return InferResponse(first.model_name, first.model_version, request.id, outputs, first.parameters)


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    data = tensor.data[start:end]
    return Tensor(tensor.name, tensor.datatype, data.shape, data)


class _Whole:
    """A request, and what has become of its parts."""

    def __init__(self, request: InferRequest, parts: list[InferRequest], statistics: ModelStatistics) -> None:
        self.parts = parts
        self._request = request
        self._statistics = statistics
        self._answers: dict[InferRequest, InferResponse] = {}
        self._over = False
        self._failed = False
        self._started: list[int] = []
        self._ended = 0
        self._compute = ComputeTimes()

    def part_ran(self, batch: Batch) -> None:
        """A batch with a part of it has run."""
        outcome = batch.outcomes[0]
        if isinstance(outcome, InferResponse):
            self._started.append(batch.started_ns)
            self._ended = max(self._ended, batch.ended_ns)
            gathered, ran = batch.gathered_ns, batch.ran_ns
            self._compute.add(gathered - batch.started_ns, ran - gathered, batch.ended_ns - ran)
        elif not self._over and not self._failed:
            self._failed = True
            self._statistics.fail.add(1, batch.ended_ns - self._request.arrived_ns)

    def part_done(
        self, part: InferRequest, response: InferResponse | None, error: BacklineError | None
    ) -> None:
        """A part has its answer."""
        if response is not None:
            self._answers[part] = response
            if len(self._answers) < len(self.parts):
                return
            response, error = self._answer()
        self.end()
        self._request.on_cancel = None
        self._request.on_complete(self._request, response, error)

    def _answer(self) -> tuple[InferResponse | None, BacklineError | None]:
        request = self._request
        try:
            response = put_together(request, [self._answers[part] for part in self.parts])
        except Internal as unlike:
            self._statistics.fail.add(1, self._ended - request.arrived_ns)
            return None, unlike
        started = min(self._started)
        self._statistics.record_in_parts(request, started, self._ended, self._compute)
        return response, None

    def cancelled(self, request: InferRequest) -> None:
        """Nobody waits for it any more."""
        if not self._failed:  # a part of it has, and that is still to be told
            self._statistics.record_cancelled(request)
        self.end()

    def end(self) -> None:
        """What has not run of it is not run any more."""
        self._over = True
        for part in self.parts:
            if part not in self._answers and not part.cancelled:
                part.cancel()
