"""Runs the queued jobs: as many at a time as the interactive requests to each model leave room for."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from backline.dialects.answers import hidden_error
from backline.dialects.plugin import DialectContext
from backline.plugins.dialects.jobs.job import SMALL, Claim, NotDurable, Outcome, State
from backline.plugins.dialects.jobs.replayed import JobIdentity, ReplayedRequest
from backline.plugins.dialects.jobs.store import Store
from backline.plugins.dialects.jobs.store_thread import StoreThread, write_durably
from backline.wire.application import Buffer, Fields
from backline_client.values.errors import BacklineError

log = logging.getLogger(__name__)

#: The maximum number of jobs of one version that run or wait in its queue at a time, and the number if the
#: model has no instances of its own, such as an ensemble.
MOST_RUNNING: Final = 64
_WITHOUT_INSTANCES: Final = 4
#: The maximum size in bytes of the inputs of all running jobs together.
_MOST_BYTES: Final = 256 << 20
#: Seconds between two looks at what is due, and at a queue in which interactive requests wait.
_TICK: Final = 1.0
_LOOK_AGAIN: Final = 0.01
#: Seconds before the second attempt; each further delay is four times as long, up to the maximum.
_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 300.0
#: Statuses that mean that the request never ran, and those after which another attempt may succeed.
_NOT_RUN: Final = frozenset((429, 503))
_PASSING: Final = frozenset((408, 500, 502, 504))
#: Seconds that jobs have to end when the server stops; their models have stopped by then.
_STOP: Final = 5.0
_Version: TypeAlias = tuple[str, str]


class _Running:
    def __init__(self, claim: Claim, identity: JobIdentity) -> None:
        self.claim = claim
        self.identity = identity
        self.cancelled = False
        self.request: ReplayedRequest | None = None


class Runner:
    """Claims jobs from the store, runs them through the routes of the server, and stores the responses.

    `on_end` is called with the number of each job that has ended.
    """

    def __init__(self, context: DialectContext, store: StoreThread, on_end: Callable[[int], None]) -> None:
        self._context = context
        self._engine = context.engine
        self._store = store
        self._on_end = on_end
        #: The versions that may have queued jobs.
        self._queued: set[_Version] = set()
        self._running: dict[_Version, dict[int, _Running]] = defaultdict(dict)
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._stopping = False
        self._main: asyncio.Task[None] | None = None
        #: The mean time of a job's run in seconds, by version.
        self._means: dict[_Version, float] = {}
        self._unwatch: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Starts to run jobs. Has no effect if it has begun."""
        if self._main is None and not self._stopping:
            self._unwatch = self._engine.watch(self._changed)
            self._main = asyncio.get_running_loop().create_task(self._run())

    def queued(self, model: str, version: str) -> None:
        """Called when a job of this version was queued."""
        self._queued.add((model, version))
        self._woken.set()

    def cancel(self, seq: int) -> None:
        """Ends the run of a job that was cancelled in the store."""
        for jobs in self._running.values():
            if (job := jobs.get(seq)) is not None:
                job.cancelled = True
                if job.request is not None:
                    job.request.abandon()
                    job.request.respond(499, ())

    def seconds_for(self, model: str, version: str, jobs: int) -> float | None:
        """Returns an estimate of the seconds until `jobs` jobs of a version have run; None if none has run
        yet.
        """
        mean = self._means.get((model, version))
        return None if mean is None else mean * jobs / max(1, self._window(model, version))

    async def close(self) -> None:
        """Stops. Jobs that have not ended are given back to the queue."""
        self._stopping = True
        self._unwatch()
        if self._main is not None:
            self._woken.set()
            await self._main
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP)
            for task in late:  # the next server finds that this one has died
                task.cancel()

    def _changed(self) -> None:
        self._stopping = self._stopping or self._engine.is_stopping
        self._woken.set()

    async def _run(self) -> None:
        next_look = 0.0
        failed = False
        while not self._stopping:
            self._woken.clear()
            wait = _TICK
            try:
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _TICK
                    queued, ended = await self._store.call(Store.tend)
                    self._queued.update(queued)
                    for seq in ended:
                        self._on_end(seq)
                if await self._fill():
                    wait = _LOOK_AGAIN
                failed = False
            except Exception as error:
                if not failed:  # once, not at every tick
                    log.error("jobs cannot be run now, the server keeps trying: %s", error)
                failed = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), wait)

    async def _fill(self) -> bool:
        """Starts jobs where there is room. Returns whether some must wait for interactive requests."""
        held = False
        for key in tuple(self._queued):
            room = self._room(key)
            held = held or room < 0
            if room <= 0 or self._stopping:
                continue
            model, version = key
            self._queued.discard(key)  # a job that is queued meanwhile adds it again
            claims = await self._store.call(lambda store: store.claim(model, version, room))  # noqa: B023
            if len(claims) == room:
                self._queued.add(key)
            for claim in claims:
                self._start(key, claim)
        return held

    def _window(self, model: str, version: str) -> int:
        try:
            found = self._engine.find_ready(model, version)
        except BacklineError:
            return 0
        placement = found.placement
        if placement is None or not placement.instances:
            return _WITHOUT_INSTANCES
        return min(MOST_RUNNING, placement.instances * max(1, placement.max_batch_size))

    def _room(self, key: _Version) -> int:
        """Returns how many jobs of a version to start now. While interactive requests wait, it is one job at
        a time, so that jobs do not starve; the room is negative if there may be more soon.
        """
        running = self._running.get(key, {})
        window = self._window(*key)
        if not window:
            return 0
        if self._bytes > _MOST_BYTES:
            return -1
        own = sum(job.identity.waits for job in running.values())
        if self._engine.find_ready(*key).serving.queue.pending > own:
            return 1 if not running else -1
        return window - len(running)

    def _start(self, key: _Version, claim: Claim) -> None:
        try:
            levels = self._engine.find(*key).config.priority_levels
        except BacklineError:
            levels = 0
        job = _Running(claim, JobIdentity(claim.owner, claim.model, levels))
        self._running[key][claim.seq] = job
        self._bytes += claim.size
        task = asyncio.get_running_loop().create_task(self._carry_out(key, job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, key: _Version, job: _Running) -> None:
        began = time.monotonic()
        try:
            outcome, body = await self._attempt(job)
            if outcome.state is State.DONE:
                seconds = time.monotonic() - began
                self._means[key] = 0.9 * self._means.get(key, seconds) + 0.1 * seconds
            if await self._keep(job.claim, outcome, body) and outcome.state.ended:
                self._on_end(job.claim.seq)
        except Exception as error:
            hidden_error(f"job {job.claim.seq:x}", error)
        finally:
            self._bytes -= job.claim.size
            del self._running[key][job.claim.seq]
            if not self._running[key]:
                del self._running[key]
            self._woken.set()

    async def _attempt(self, job: _Running) -> tuple[Outcome, list[Buffer]]:
        """Runs a job once. Returns the outcome, and the body of the response if there is one."""
        claim = job.claim
        body = claim.body
        if claim.size > SMALL:
            try:
                body = await self._in_thread(lambda store: store.input_file(claim.token).read_bytes())
            except OSError as error:
                log.error("the input of job %x cannot be read: %s", claim.seq, error)
                return Outcome(State.FAILED, error=f"its input cannot be read: {error.strerror}"), []
        if job.cancelled:
            return Outcome(State.CANCELLED), []
        headers = {
            name.encode("latin-1"): value.encode("latin-1") for name, value in json.loads(claim.fields)
        }
        job.request = request = ReplayedRequest(claim.path.encode(), headers, body or b"")
        request.identity = job.identity
        del body
        try:
            self._context.replay(request)
            async with asyncio.timeout(claim.attempt_limit):
                status, fields, answer = await request.answered
        except TimeoutError:
            request.abandon()
            text = f"the attempt took longer than {claim.attempt_limit:g} s (attempt_limit)"
            return self._failed(claim, 504, [], [json.dumps({"error": text}).encode()])
        finally:
            job.request = None
        if status in _NOT_RUN:
            delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(9, claim.claims - claim.attempts))
            return Outcome(State.WAITING, error=_text(answer), delay=delay, free=True), []
        if status >= 400:
            return self._failed(claim, status, fields, answer)
        return _ended(State.DONE, status, fields, answer), answer

    def _failed(
        self, claim: Claim, status: int, fields: Fields, answer: list[Buffer]
    ) -> tuple[Outcome, list[Buffer]]:
        text = _text(answer)
        if status in _PASSING and claim.attempts < claim.most_attempts:
            delay = min(_LONGEST_DELAY, _FIRST_DELAY * 4 ** (claim.attempts - 1)) * random.uniform(0.75, 1.25)
            return Outcome(State.WAITING, error=text, delay=delay), []
        return _ended(State.FAILED, status, fields, answer, text), answer

    async def _keep(self, claim: Claim, outcome: Outcome, body: list[Buffer]) -> bool:
        """Stores an outcome; while the disk is full, tries again and again. Meanwhile, the job keeps its
        place, so that a full disk stops the jobs instead of losing results.
        """
        while True:
            try:
                if outcome.answer is None:
                    await self._in_thread(
                        lambda store: write_durably(store.result_file(claim.token, claim.claims), body)
                    )
                return await self._store.call(lambda store: store.finish(claim, outcome))
            except NotDurable as error:
                if self._stopping:
                    raise
                log.error("the result of job %x cannot be stored, trying again: %s", claim.seq, error)
                await asyncio.sleep(_TICK)

    async def _in_thread(self, work: Callable[[Store], Any]) -> Any:
        """Runs `work`, which only reads or writes a file, on a thread of the loop's executor."""
        store = await self._store.call(lambda store: store)
        return await asyncio.to_thread(work, store)


def _ended(state: State, status: int, fields: Fields, answer: list[Buffer], error: str = "") -> Outcome:
    size = sum(memoryview(part).nbytes for part in answer)
    kept = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in fields
        if name not in (b"retry-after", b"ratelimit", b"ratelimit-policy", b"www-authenticate")
    ]
    body = None if size > SMALL else b"".join(answer)
    return Outcome(state, status, json.dumps(kept).encode(), body, size, error)


def _text(answer: list[Buffer]) -> str:
    """Returns the text of an error, from the body of its response."""
    body = b"".join(answer)[:SMALL].decode(errors="replace")
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        text = body
    return str(text)[:2000]
