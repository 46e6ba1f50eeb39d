"""Instances that run one batch at a time in the server's process: on the event loop, or on a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from queue import SimpleQueue
from time import monotonic_ns, thread_time_ns
from typing import ClassVar, TypeAlias

from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.system.cores import pin
from backline.system.standstill import stood_still
from backline.workers.batch import Batch
from backline.workers.instance import Finished, Instance
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError, Cancelled, Internal, Unavailable
from backline_client.values.messages import InferResponse

RunBatch: TypeAlias = Callable[[Batch], None]
log = logging.getLogger("backline.workers")

#: The time in seconds that a runtime gets to interrupt a run before the thread of the run is abandoned.
_GRACE = 1.0
#: A version takes no more requests once it has this many abandoned threads, because each of them holds
#: memory, and perhaps a core.
MAX_STUCK = 8


class InlineInstance:
    """An instance that runs batches on the event loop. It is for models whose runs take well below a
    millisecond, less than a switch to another thread and back.

    A model that was fast when it was measured may later get far larger requests, and would then block the
    event loop. So a batch that is much larger than any batch known to be fast runs on a thread, which
    `make_thread` creates when it is first needed. If that run is fast, batches up to a few times its size run
    on the event loop from then on. Without `make_thread`, all batches run on the event loop.

    `on_slow` is called once, between batches, if several runs exceed LONG_RUN_NS. Other programs may delay a
    single run. So a run that is slow by the wall clock only starts a measurement of the processor time of the
    following runs, and that time decides.
    """

    off_loop: ClassVar[bool] = False
    #: The time in nanoseconds above which a run counts as slow.
    LONG_RUN_NS = 5_000_000
    #: The number of runs whose processor time is measured after a slow run.
    _WATCHED = 1000
    #: The number of slow runs, by processor time, at which `on_slow` is called.
    _ENOUGH = 2
    #: A batch whose inputs have at most this many elements always runs on the event loop. The number is a few
    #: times the number of elements with which models are measured.
    FEW_ELEMENTS = 4096
    #: A batch with up to this many times the elements of a fast batch may run on the event loop.
    _GROWTH = 4
    #: The processor time in nanoseconds up to which a run on the thread counts as fast.
    _FAST_RUN_NS = LONG_RUN_NS // _GROWTH

    def __init__(
        self,
        execute: RunBatch,
        on_slow: Callable[[], None] | None = None,
        make_thread: Callable[[RunBatch], ThreadInstance] | None = None,
    ) -> None:
        self._execute = execute
        self._on_slow = on_slow
        self._watched = 0
        self._slow = 0
        self._make_thread = make_thread
        self._thread: ThreadInstance | None = None
        #: The processor time of the last run on the thread, in nanoseconds.
        self._took = 0
        #: The maximum number of elements in the inputs of a batch on the event loop.
        self._most = float("inf") if make_thread is None else self.FEW_ELEMENTS

    def leaves_loop(self, tickets: Sequence[Ticket]) -> bool:
        """Returns whether a batch of these requests is too large for the event loop."""
        return _count_elements(tickets) > self._most

    def run(self, batch: Batch, finished: Finished) -> None:
        if batch.off_loop and self._make_thread is not None and self.leaves_loop(batch.tickets):
            if self._thread is None:
                self._thread = self._make_thread(self._run_large)
            self._thread.run(batch, lambda _, ended: self._ran_large(ended, finished))
            return
        if self._watched:
            self._run_watched(batch, finished)
            return
        self._execute(batch)
        if batch.ended_ns - batch.started_ns > self.LONG_RUN_NS and self._on_slow is not None:
            self._watched = self._WATCHED
        finished(self, batch)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.close()

    def _run_large(self, batch: Batch) -> None:
        """Runs a batch on the thread."""
        elements = _count_elements(batch.tickets)
        began = thread_time_ns()
        self._execute(batch)
        self._took = thread_time_ns() - began
        if self._took <= self._FAST_RUN_NS:
            self._most = max(self._most, self._GROWTH * elements)

    def _ran_large(self, batch: Batch, finished: Finished) -> None:
        self._note(self._took)
        finished(self, batch)
        self._report()

    def _run_watched(self, batch: Batch, finished: Finished) -> None:
        self._watched -= 1
        began = thread_time_ns()
        self._execute(batch)
        self._note(thread_time_ns() - began)
        finished(self, batch)
        self._report()

    def _note(self, took: int) -> None:
        """Counts a run if it was slow; `took` is its processor time in nanoseconds."""
        if took > self.LONG_RUN_NS:
            self._slow += 1
            self._watched = self._WATCHED
        elif not self._watched:
            self._slow = 0

    def _report(self) -> None:
        if self._slow >= self._ENOUGH and self._on_slow is not None:
            on_slow, self._on_slow, self._watched = self._on_slow, None, 0
            on_slow()


def _count_elements(tickets: Sequence[Ticket]) -> int:
    """Returns the number of elements in the inputs of requests."""
    elements = 0
    for ticket in tickets:
        for tensor in ticket.request.inputs.values():
            elements += tensor.data.size
    return elements


class ThreadInstance:
    """An instance that runs batches on a dedicated thread, for runtimes that release the GIL while they
    compute.
    """

    off_loop: ClassVar[bool] = True

    def __init__(
        self,
        execute: RunBatch,
        loop: asyncio.AbstractEventLoop,
        name: str,
        cores: Collection[int] = (),
        poll: BusyPoll | None = None,
    ) -> None:
        """Starts the thread, pinned to `cores`, or on any core if `cores` is empty. The busy poll `poll` is
        paused during runs, so that it takes no core from them.
        """
        self._execute = execute
        self._loop = loop
        self._poll = poll or BusyPoll()
        self._cores = cores
        self._work: SimpleQueue[tuple[Batch, Finished] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, batch: Batch, finished: Finished) -> None:
        self._poll.hold()
        self._work.put((batch, finished))

    def close(self) -> None:
        self._work.put(None)

    def _serve(self) -> None:
        pin(self._cores)
        while (work := self._work.get()) is not None:
            batch, finished = work
            self._execute(batch)
            try:
                self._loop.call_soon_threadsafe(self._ended, batch, finished)
            except RuntimeError:  # the loop was closed during the run
                return
            del work, batch, finished  # otherwise the batch's tensors would be kept until the next batch

    def _ended(self, batch: Batch, finished: Finished) -> None:
        self._poll.release()
        finished(self, batch)


class RunLimit:
    """The time limit for the runs of one model version, and the count of threads abandoned because of it. Use
    it only on the event loop.

    Requests that belong to no sequence are retried once if the model is declared `idempotent`; None means
    undeclared. `on_given_up` is called with a message for each abandoned thread. `on_available` is called
    with a reason once there are MAX_STUCK abandoned threads, and with "" when there are fewer again.
    """

    def __init__(
        self,
        label: str,
        seconds: float,
        statistics: ModelStatistics,
        *,
        idempotent: bool | None,
        on_given_up: Callable[[str], None],
        on_available: Callable[[str], None],
    ) -> None:
        self.label = label
        self.seconds = seconds
        self.idempotent = idempotent
        #: The reason why no run may start; empty if runs may start.
        self.reason = ""
        #: The number of runs on abandoned threads.
        self.stuck = 0
        self._statistics = statistics
        self._on_given_up = on_given_up
        self._on_available = on_available

    @property
    def exceeded(self) -> str:
        """The message for a run that exceeds the limit."""
        return f"{self.label} did not finish within {self.seconds:g} s"

    @property
    def why_not_again(self) -> str:
        """Says why a run is not retried, to complete the message about the failure."""
        if self.idempotent is None:
            return "it is not tried again unless the model is declared idempotent"
        return "it is not tried again: the model is not idempotent"

    def late(self, *, can_be_ended: bool) -> None:
        """Counts a run that has exceeded the limit, and logs that it is interrupted if it `can_be_ended`."""
        self._statistics.timed_out += 1
        if can_be_ended:
            log.error("%s, and is interrupted", self.exceeded)

    def given_up(self) -> None:
        """Counts a thread that is abandoned because its run cannot be interrupted."""
        self._statistics.stuck += 1
        self.stuck += 1
        stuck = self.stuck
        reason = (
            f"{self.exceeded} and cannot be interrupted: its thread is abandoned, and a new thread"
            f" replaces it ({stuck} so far)"
        )
        log.error("%s", reason)
        self._on_given_up(reason)
        if stuck >= MAX_STUCK and not self.reason:
            self.reason = (
                f"{self.label} has {stuck} runs that do not end;"
                " it is available again when one of them does, or after a restart of the server"
            )
            self._on_available(self.reason)

    def came_back(self) -> None:
        """Stops counting an abandoned thread, because its run has ended."""
        self._statistics.stuck -= 1
        self.stuck -= 1
        if self.reason and self.stuck < MAX_STUCK:
            self.reason = ""
            self._on_available("")


class TimedInstance:
    """An instance that runs batches on a thread, and replaces the thread if a run exceeds the limit and
    cannot be interrupted.
    """

    off_loop: ClassVar[bool] = True

    def __init__(
        self,
        make_thread: Callable[[], ThreadInstance],
        loop: asyncio.AbstractEventLoop,
        limit: RunLimit,
        leave: Callable[[Batch], None] = lambda _: None,
    ) -> None:
        """When a thread is abandoned, `leave` is called with the batch that the thread is running."""
        self.limit = limit
        self.loop = loop
        self._make_thread = make_thread
        self._leave = leave
        self.thread = make_thread()

    def run(self, batch: Batch, finished: Finished) -> None:
        """Starts a batch with the time limit; see Instance.run."""
        _TimedRun(self, batch, finished).begin()

    def replace_thread(self, running: Batch) -> None:
        """Starts a new thread in place of the old one, which ends after the batch that it is running."""
        self._leave(running)
        self.thread.close()
        self.thread = self._make_thread()

    def close(self) -> None:
        """Ends the thread after its batch."""
        self.thread.close()


class _TimedRun:
    """The run of one batch with a time limit, and the outcomes of its requests so far.

    If the batch of an idempotent model exceeds the limit, each request that belongs to no sequence is retried
    separately, so that the request at fault cannot make other requests fail again. Each run gets a new Batch
    object, because an abandoned thread may still write to its batch.
    """

    def __init__(self, instance: TimedInstance, batch: Batch, finished: Finished) -> None:
        self._instance = instance
        self._limit = instance.limit
        self._whole = batch
        self._finished = finished
        self._running = batch
        self._late = False
        self._timer: asyncio.TimerHandle | None = None
        #: Whether requests are being retried.
        self._again = False
        #: The requests that are still to be retried.
        self._rest: deque[Ticket] = deque()
        #: One batch for each request that has an outcome.
        self._parts: list[Batch] = []

    def begin(self) -> None:
        whole = self._whole
        if self._limit.reason:
            whole.outcomes = [Unavailable(self._limit.reason, retry_after=1) for _ in whole.tickets]
            whole.ended_ns = monotonic_ns()
            self._instance.loop.call_soon(self._finished, self._instance, whole)
        else:
            self._run(whole.tickets, whole.items)

    def _run(self, tickets: list[Ticket], items: int) -> None:
        self._running = batch = Batch(
            tickets, items, monotonic_ns() if self._again else self._whole.started_ns, off_loop=True
        )
        self._whole.on_abandon = batch.abandon
        if self._whole.abandoned and not self._again:
            batch.abandon()
        self._timer = self._instance.loop.call_later(self._limit.seconds, self._too_late)
        self._instance.thread.run(batch, self._done)

    def _too_late(self) -> None:
        # If the server was suspended, the run may have ended in time, with its outcome still on the way to
        # the event loop.
        if self._timer is not None and stood_still(self._timer, self._instance.loop):
            self._timer = self._instance.loop.call_later(self._limit.seconds, self._too_late)
            return
        self._late = True
        batch = self._running
        can_be_ended = batch.on_abandon is not None
        self._limit.late(can_be_ended=can_be_ended)
        batch.abandon()
        if can_be_ended:
            self._timer = self._instance.loop.call_later(_GRACE, self._give_up)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._instance.replace_thread(self._running)
        self._limit.given_up()
        self._took_too_long()

    def _done(self, thread: Instance, batch: Batch) -> None:
        # If an abandoned thread has finished, its outcome is ignored, because its requests have been settled
        # or retried.
        if thread is not self._instance.thread:
            self._limit.came_back()
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._late and isinstance(batch.outcomes[0], Cancelled):
            self._took_too_long()
        elif self._again:
            self._parts.append(batch)
            self._next()
        else:
            self._end_as(batch)

    def _end_as(self, batch: Batch) -> None:
        """Finishes the whole batch with the outcomes of its first run, which ended in time."""
        whole = self._whole
        whole.outcomes, whole.parts = batch.outcomes, batch.parts
        whole.gathered_ns, whole.ran_ns, whole.ended_ns = batch.gathered_ns, batch.ran_ns, batch.ended_ns
        self._end()

    def _took_too_long(self) -> None:
        self._late = False
        tickets = self._running.tickets
        again, self._again = self._again, True
        for ticket in tickets:
            if ticket.cancelled:
                self._settle(ticket, Cancelled("the request was cancelled"))
                continue
            if again:
                why = ", nor when it was retried"
            elif not self._limit.idempotent:
                why = f"; {self._limit.why_not_again}"
            elif ticket.request.sequence is not None:
                why = ", and the state of its sequence may be lost"
            else:
                self._rest.append(ticket)
                continue
            self._settle(ticket, Internal(self._limit.exceeded + why))
        self._next()

    def _next(self) -> None:
        while self._rest:
            ticket = self._rest.popleft()
            if ticket.cancelled:
                self._settle(ticket, Cancelled("the request was cancelled"))
            elif self._limit.reason:
                self._settle(ticket, Unavailable(self._limit.reason, retry_after=1))
            else:
                self._run([ticket], ticket.batch_size)
                return
        whole = self._whole
        outcomes = {part.tickets[0]: part.outcomes[0] for part in self._parts}
        whole.parts = self._parts
        whole.outcomes = [outcomes[ticket] for ticket in whole.tickets]
        whole.gathered_ns = whole.ran_ns = whole.ended_ns = monotonic_ns()
        self._end()

    def _settle(self, ticket: Ticket, outcome: InferResponse | BacklineError) -> None:
        part = Batch([ticket], ticket.batch_size, self._whole.started_ns)
        part.outcomes = [outcome]
        part.gathered_ns = part.ran_ns = part.ended_ns = monotonic_ns()
        self._parts.append(part)

    def _end(self) -> None:
        self._whole.on_abandon = None
        self._finished(self._instance, self._whole)
