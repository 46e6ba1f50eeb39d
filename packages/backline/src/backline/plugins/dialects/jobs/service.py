"""The routes of jobs: submit, look at, wait for, cancel and retry jobs, and fetch their results."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from msgspec import Meta, Struct
from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import JSON, encode_json, respond_json
from backline.dialects.documents import read_query
from backline.dialects.exchange import deadline_of
from backline.dialects.off_loop import LARGE, LargeRequest
from backline.dialects.open_inference.rest.messages import RestReader
from backline.dialects.plugin import Dialect, DialectContext
from backline.dialects.router import Router
from backline.engine.model import ModelState
from backline.engine.ticket import unsubmitted
from backline.plugins.dialects.jobs.job import (
    ATTEMPTS,
    EXPIRES,
    KEPT,
    LONGEST,
    LONGEST_ATTEMPT,
    LOWEST_PRIORITY,
    MOST_ATTEMPTS,
    PRIORITY,
    SMALL,
    Job,
    NewJob,
    State,
    parse_id,
)
from backline.plugins.dialects.jobs.runner import Runner
from backline.plugins.dialects.jobs.store_thread import StoreThread, write_durably
from backline.wire.application import Buffer, Fields, HttpRequest
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument, Unsupported

#: The maximum number of seconds for which a request waits for the end of a job.
LONGEST_WAIT: Final = 60.0
#: Seconds after which a waiting request looks again, as another server may have run the job.
_LOOK_AGAIN: Final = 5.0
_LONGEST_KEY: Final = 255
#: The header fields that are kept with a job, because the meaning of the body or the form of the response
#: depends on them. If fields are forwarded to models, all are kept but those of _NEVER_KEPT.
_KEPT_FIELDS: Final = frozenset(
    (b"content-type", b"accept", b"inference-header-content-length", b"x-request-id", b"traceparent")
)
_NEVER_KEPT: Final = frozenset(
    b"authorization proxy-authorization cookie connection content-length content-encoding transfer-encoding"
    b" expect host te upgrade prefer idempotency-key grpc-timeout x-envoy-expected-rq-timeout-ms".split()
)
_RANGE: Final = re.compile(rb"bytes=(\d{0,15})-(\d{0,15})").fullmatch
_NAMES: Final = {state.shown: state for state in State if state is not State.WAITING}


class NotEnded(BacklineError):
    """Raised if the result of a job is asked for before the job has ended."""

    http_status = 409
    grpc_code = 9
    retry_after = 1


class NoResult(BacklineError):
    """Raised if the result of a cancelled or expired job is asked for."""

    http_status = 410
    grpc_code = 9


@decodable
class SubmitOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a submission. Times are in seconds."""

    priority: Annotated[int, Meta(ge=1, le=LOWEST_PRIORITY)] = PRIORITY
    attempts: Annotated[int, Meta(ge=1, le=MOST_ATTEMPTS)] = ATTEMPTS
    expires: Annotated[float, Meta(gt=0, le=LONGEST)] = EXPIRES
    kept: Annotated[float, Meta(gt=0, le=LONGEST)] = KEPT
    attempt_limit: Annotated[float, Meta(gt=0, le=86400)] = LONGEST_ATTEMPT


@decodable
class WaitOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a request about one job."""

    wait: Annotated[float, Meta(ge=0, le=LONGEST_WAIT)] = 0.0


@decodable
class ListOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a list. `state` names one or more states, separated by commas."""

    state: str = ""
    model: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[str, Meta(pattern="^[0-9a-f]{0,15}$")] = ""


class JobsDialect(Dialect):
    """Jobs of one server. The servers that share a state folder share their jobs."""

    def __init__(self, context: DialectContext) -> None:
        super().__init__(context)
        self._read = RestReader(context.engine).read
        self._folder = context.resumed_folder("jobs")
        #: What waits for the end of jobs, by the number of the job.
        self._waiting: defaultdict[int, set[asyncio.Future[None]]] = defaultdict(set)
        if self._folder is not None:
            self._store = StoreThread(self._folder)
            self._runner = Runner(context, self._store, self._ended)
            context.engine.watch(self._changed)
            if self._folder.is_dir():
                self._runner.begin()

    def add_routes(self, router: Router) -> None:
        kept = self._folder is not None
        submit = self._submit if kept else _refuse
        router.add(Scope.INFER, "POST", "/v2/models/{}/jobs", submit, "")
        router.add(Scope.INFER, "POST", "/v2/models/{}/versions/{}/jobs", submit)
        for method, pattern, handler in (
            ("GET", "/v2/jobs", self._list),
            ("GET", "/v2/jobs/{}", self._show),
            ("DELETE", "/v2/jobs/{}", self._delete),
            ("GET", "/v2/jobs/{}/result", self._result),
            ("POST", "/v2/jobs/{}/retry", self._retry),
        ):
            router.add(Scope.INFER, method, pattern, handler if kept else _refuse, lists=True)

    async def close(self) -> None:
        if self._folder is not None:
            await self._runner.close()
            await self._store.close()

    # submissions

    def _submit(self, model: str, version: str, request: HttpRequest) -> None:
        options = read_query(SubmitOptions, request.query)
        key = request.headers.get(b"idempotency-key")
        if key is not None and not 0 < len(key) <= _LONGEST_KEY:
            raise InvalidArgument(f"an idempotency key must have 1 to {_LONGEST_KEY} bytes, got {len(key)}")
        found = self.context.engine.find(model, version)
        if found.state is not ModelState.LOADING:
            found = self.context.engine.find_ready(model, version)  # raises what is wrong with it
        if version != found.version and version not in self.context.engine.labels(model):
            version = found.version  # the job runs on it, even if others become the default meanwhile
        deadline_of(request.headers)  # refuses what is malformed; a job has `expires` instead
        self._check_fits(model, version, request)
        path = f"/v2/models/{quote(model, safe='')}/versions/{quote(version, safe='')}/infer"
        new = NewJob(
            token=os.urandom(16),
            owner=_owner(request),
            model=model,
            version=version,
            path=path,
            fields=json.dumps(self._kept_fields(request.headers)).encode(),
            body=None,
            size=len(request.body),
            priority=options.priority,
            most_attempts=options.attempts,
            expires=options.expires,
            kept=options.kept,
            attempt_limit=options.attempt_limit,
            key=None if key is None else key.decode("latin-1"),
        )
        said = b"%b?%b" % (request.path, request.query)
        self.context.deferred.answer(
            request, self._accept(new, said, request.body), lambda told: _respond(request, 202, told)
        )

    def _check_fits(self, model: str, version: str, request: HttpRequest) -> None:
        """Raises BacklineError for a request that its model would refuse. A large request, and one for a
        model that is not loaded, is read only when it runs.
        """
        engine = self.context.engine
        try:
            ready = engine.find_ready(model, version)
        except BacklineError:
            return
        if ready.on_demand or len(request.body) > LARGE:
            return
        try:
            plan, id, inputs = self._read(request.body, request.headers, model, version, True)
        except LargeRequest:
            return
        if plan.shared is not None:
            plan.release()
            raise InvalidArgument(
                "a job cannot use shared memory, which may change before it runs: send the inputs in the"
                " request, and fetch the outputs from the result"
            )
        ready.serving.check(unsubmitted(plan.request(model, version, id, inputs, None)))

    def _kept_fields(self, headers: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
        every = self.context.forwarding.http is not None
        return [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers.items()
            if name in _KEPT_FIELDS or (every and name not in _NEVER_KEPT)
        ]

    async def _accept(self, new: NewJob, said: bytes, body: Buffer) -> dict[str, Any]:
        """Stores a job. `said` is the rest of the request that an idempotency key stands for."""
        small = new.size <= SMALL
        if new.key is not None:
            work = partial(_digest, said, new.fields, body)
            new = replace(new, digest=work() if small else await asyncio.to_thread(work))
        if small:
            new = replace(new, body=bytes(body))
            job = await self._store.call(lambda store: store.accept(new))
        else:
            job = await self._accept_large(new, body)
        if job.token == new.token:
            self._runner.queued(job.model, job.version)
        self._runner.begin()
        return await self._described(job)

    async def _accept_large(self, new: NewJob, body: Buffer) -> Job:
        await self._store.call(lambda store: store.check_room(new.size))
        file = await self._store.call(lambda store: store.input_file(new.token))
        job = None
        try:
            await asyncio.to_thread(write_durably, file, [body])
            job = await self._store.call(lambda store: store.accept(new))
        finally:
            if job is None or job.token != new.token:
                with suppress(OSError):
                    file.unlink()
        return job

    # requests about jobs

    def _show(self, id: str, request: HttpRequest) -> None:
        self._answer_about(id, request, self._described, lambda told: _respond(request, 200, told))

    def _result(self, id: str, request: HttpRequest) -> None:
        async def found(job: Job) -> tuple[Job, bytes | Path]:
            if not job.state.ended:
                raise NotEnded(
                    f"job '{job.id}' is {job.state.shown}, so it has no result yet: ask again later, or with"
                    f" ?wait=30 (up to {LONGEST_WAIT:g} seconds)"
                )
            if job.state in (State.CANCELLED, State.EXPIRED):
                raise NoResult(f"job '{job.id}' is {job.state.shown} and has no result: {job.error}")
            answer = await self._store.call(lambda store: store.answer(job))
            if answer is not None:
                return job, answer
            return job, await self._store.call(lambda store: store.result_file(job.token, job.claims))

        def respond(told: tuple[Job, bytes | Path]) -> None:
            job, answer = told
            span = _range(request.headers.get(b"range", b""), job) if job.status == 200 else None
            start, end = span or (0, job.answer_size)
            if isinstance(answer, bytes):
                _respond_result(request, job, span, answer[start:end])
                return
            self.context.deferred.answer(
                request,
                asyncio.to_thread(_read_part, answer, start, end),
                lambda body: _respond_result(request, job, span, body),
            )

        self._answer_about(id, request, found, respond)

    def _answer_about(self, id: str, request: HttpRequest, work: Any, then: Any) -> None:
        """Finds a job, which may have to end first, and responds with what `work` makes of it."""
        seconds = read_query(WaitOptions, request.query).wait
        seq, token = parse_id(id)
        owner = _owner(request)

        async def answer() -> Any:
            job = await self._waited(seq, token, owner, time.monotonic() + seconds)
            request.on_abandon = None
            _check(request, job)
            return await work(job)

        task = self.context.deferred.answer(request, answer(), then)
        if seconds:
            request.on_abandon = partial(_cancel, task)

    async def _waited(self, seq: int, token: bytes, owner: str, end: float) -> Job:
        """Returns a job as soon as it has ended, at the latest at `end` (of time.monotonic())."""
        while True:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[seq].add(future)
            try:
                job = await self._store.call(lambda store: store.find(seq, token, owner))
                left = end - time.monotonic()
                if job.state.ended or left <= 0 or self.context.engine.is_stopping:
                    return job
                await asyncio.wait((future,), timeout=min(left, _LOOK_AGAIN))
            finally:
                self._waiting[seq].discard(future)
                if not self._waiting[seq]:
                    del self._waiting[seq]

    def _list(self, request: HttpRequest) -> None:
        options = read_query(ListOptions, request.query)
        states: list[State] = []
        for name in filter(None, options.state.split(",")):
            if name not in _NAMES:
                raise InvalidArgument(f"there is no state '{name[:64]}'; expected {', '.join(_NAMES)}")
            states += [State.QUEUED, State.WAITING] if name == "queued" else [_NAMES[name]]
        owner = _owner(request)
        before = int(options.cursor or "0", 16) or sys.maxsize

        async def found() -> dict[str, Any]:
            jobs = await self._store.call(
                lambda store: store.page(owner, states, options.model, before, options.limit)
            )
            identity = request.identity
            shown = [one for one in jobs if identity is None or identity.may(Scope.INFER, one.model)]
            document: dict[str, Any] = {"jobs": [_document(job) for job in shown]}
            if len(jobs) == options.limit:
                document["cursor"] = f"{jobs[-1].seq:x}"
            return document

        self.context.deferred.answer(request, found(), lambda told: respond_json(request, told))

    def _delete(self, id: str, request: HttpRequest) -> None:
        async def delete(job: Job) -> dict[str, Any] | None:
            if job.state.ended:
                await self._store.call(lambda store: store.remove(job))
                return None
            cancelled = await self._store.call(lambda store: store.cancel(job))
            self._runner.cancel(job.seq)
            self._ended(job.seq)
            return await self._described(cancelled)

        self._answer_about(
            id,
            request,
            delete,
            lambda told: request.respond(204, ()) if told is None else _respond(request, 200, told),
        )

    def _retry(self, id: str, request: HttpRequest) -> None:
        async def retry(job: Job) -> dict[str, Any]:
            queued = await self._store.call(lambda store: store.retry(job))
            self._runner.begin()
            self._runner.queued(queued.model, queued.version)
            return await self._described(queued)

        self._answer_about(id, request, retry, lambda told: _respond(request, 202, told))

    async def _described(self, job: Job) -> dict[str, Any]:
        document = _document(job)
        if job.state is State.QUEUED:
            ahead = document["position"] = await self._store.call(lambda store: store.position(job))
            seconds = self._runner.seconds_for(job.model, job.version, ahead + 1)
            if seconds is not None:
                document["estimated_seconds"] = round(seconds, 3)
        return document

    # the end of jobs

    def _ended(self, seq: int) -> None:
        for future in self._waiting.get(seq, ()):
            if not future.done():
                future.set_result(None)

    def _changed(self) -> None:
        if self.context.engine.is_stopping:
            for seq in tuple(self._waiting):
                self._ended(seq)


def _refuse(*_: object) -> None:
    raise Unsupported("this server keeps nothing on disk, so it has no jobs: run models with infer instead")


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _owner(request: HttpRequest) -> str:
    """Returns who owns the jobs of a request's caller. Without access control, all callers are one."""
    return "" if request.identity is None else request.identity.holder


def _check(request: HttpRequest, job: Job) -> None:
    if request.identity is not None:
        request.identity.require(Scope.INFER, job.model)


def _digest(said: bytes, fields: bytes, body: Buffer) -> bytes:
    found = blake2b(said, digest_size=16)
    for part in (b"\0", fields, b"\0", body):
        found.update(part)
    return found.digest()


def _time(seconds: float) -> str | None:
    if not seconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"


def _document(job: Job) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": job.id,
        "model": job.model,
        "version": job.version,
        "state": job.state.shown,
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.most_attempts,
        "accepted": _time(job.accepted),
        "started": _time(job.started),
        "finished": _time(job.finished),
        "input_bytes": job.size,
    }
    if job.expires_in is not None:
        document["expires_in"] = round(job.expires_in, 3)
    if job.error:
        document["error"] = job.error
    if job.status:
        document["result"] = f"/v2/jobs/{job.id}/result"
        document["result_bytes"] = job.answer_size
    return document


def _respond(request: HttpRequest, status: int, document: dict[str, Any]) -> None:
    fields: list[tuple[bytes, bytes]] = [(b"content-type", JSON)]
    if status == 202:
        fields.append((b"location", b"/v2/jobs/" + document["id"].encode()))
    request.respond(status, fields, [encode_json(document)])


def _range(field: bytes, job: Job) -> tuple[int, int] | None:
    """Returns the part of a result that a Range field asks for; None for all of it (RFC 9110, section 14.2).
    The end is not part of it, and the part is empty if it cannot be satisfied.
    """
    match = _RANGE(field)
    if match is None or match[0] == b"bytes=-":
        return None
    size = job.answer_size
    if not match[1]:
        return max(0, size - int(match[2])), size
    end = int(match[2]) + 1 if match[2] else size
    if end <= int(match[1]) and match[2]:
        return None  # not a valid range
    return int(match[1]), min(end, size)


def _respond_result(request: HttpRequest, job: Job, span: tuple[int, int] | None, body: bytes) -> None:
    kept = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(job.answer_fields)
    ]
    if not job.status:
        request.respond(500, [(b"content-type", JSON)], [encode_json({"error": job.error})])
    elif span is None:
        fields: Fields = (*kept, (b"accept-ranges", b"bytes")) if job.status == 200 else kept
        request.respond(job.status, fields, [body], compressible=True)
    elif span[0] >= span[1]:
        request.respond(416, [(b"content-range", b"bytes */%d" % job.answer_size)])
    else:
        where = (b"content-range", b"bytes %d-%d/%d" % (span[0], span[1] - 1, job.answer_size))
        request.respond(206, [*kept, where], [body])


def _read_part(file: Path, start: int, end: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(max(0, end - start))
