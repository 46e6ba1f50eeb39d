"""Jobs: requests that the server keeps on disk and runs later. The client of `/v2/jobs`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from backline_client.client.errors import ConnectionFailed, DeadlineExceeded
from backline_client.client.http_codec import HEADER_LENGTH, decode_infer, encode_infer
from backline_client.client.http_connection import HttpAnswer
from backline_client.client.http_transport import HttpTransport, model_path
from backline_client.client.result import InferResult
from backline_client.client.transport import InferCall
from backline_client.values.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from backline_client.client.aio import AsyncClient
    from backline_client.client.sync import Runner

#: Seconds that one request waits for the end of a job, and the seconds beyond that for its response.
_WAIT = 30.0
_MARGIN = 15.0
#: Seconds before the first repetition of a request that did not reach the server, and the number of
#: repetitions of a submission.
_PAUSE = 0.25
_REPEATED = 3
_WAITING = frozenset(("queued", "running"))


async def _transport(client: AsyncClient) -> HttpTransport:
    transport = await client.transport()
    if not isinstance(transport, HttpTransport):
        raise Unsupported(
            "jobs belong to one server and need HTTP: connect to http://HOST:PORT instead of"
            f" {client.address.url}"
        )
    return transport


async def _ask(client: AsyncClient, method: bytes, path: str, timeout: float) -> HttpAnswer:
    """Sends a request. Raises the server's error, unless it has succeeded."""
    transport = await _transport(client)
    answer = await transport.exchange(method, path.encode(), timeout)
    if answer.status not in (200, 202, 204):
        raise transport.failure(answer)
    return answer


async def _document(client: AsyncClient, method: bytes, path: str, timeout: float) -> dict[str, Any]:
    answer = await _ask(client, method, path, timeout)
    answer.status = 200
    found: dict[str, Any] = (await _transport(client)).document(path.encode(), answer)
    return found


async def submit(client: AsyncClient, call: InferCall, key: str, settings: Mapping[str, Any]) -> AsyncJob:
    """Submits a call as a job. A request that gets no response is sent again, with the same key, so that it
    is one job in any case. `settings` that are None are left to the server.
    """
    transport = await _transport(client)
    header, buffers = encode_infer(call)
    fields = {"Idempotency-Key": key or os.urandom(16).hex(), HEADER_LENGTH.decode(): len(header)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    query = urlencode({name: value for name, value in settings.items() if value is not None})
    path = model_path(call.model, call.version) + b"/jobs" + (f"?{query}".encode() if query else b"")
    body = b"".join((header, *buffers))
    for repeated in range(_REPEATED + 1):
        try:
            answer = await transport.exchange(b"POST", path, call.timeout, body, lines)
            break
        except ConnectionFailed:
            if repeated == _REPEATED:
                raise
            await asyncio.sleep(_PAUSE * 2**repeated)
    if answer.status != 202:
        raise transport.failure(answer)
    answer.status = 200
    return AsyncJob(client, transport.document(path, answer))


async def listed(client: AsyncClient, state: str, model: str, limit: int, timeout: float) -> list[AsyncJob]:
    """Returns the caller's jobs, newest first, at most `limit`."""
    found: list[AsyncJob] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < limit:
        query = {"state": state, "model": model, "cursor": cursor, "limit": min(1000, limit - len(found))}
        path = "/v2/jobs?" + urlencode({name: value for name, value in query.items() if value})
        page = await _document(client, b"GET", path, timeout)
        found += [AsyncJob(client, one) for one in page["jobs"]]
        cursor = page.get("cursor")
    return found


class AsyncJob:
    """A job on a server. `document` is what the server said last: id, model, version, state, attempts, times
    and, if the job has failed, error.
    """

    def __init__(self, client: AsyncClient, document: Mapping[str, Any]) -> None:
        self._client = client
        self.document = dict(document)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state} at {self._client.address.url}>"

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def state(self) -> str:
        """queued, running, done, failed, cancelled or expired, as of the last response."""
        return str(self.document.get("state", "unknown"))

    @property
    def _path(self) -> str:
        return f"/v2/jobs/{quote(self.id, safe='')}"

    async def refresh(self, timeout: float | None = None) -> str:
        """Asks the server for the state, and returns it."""
        return await self._ask(b"GET", self._path, self._client._limit(timeout))

    async def _ask(self, method: bytes, path: str, timeout: float) -> str:
        self.document = await _document(self._client, method, path, timeout)
        return self.state

    async def wait(self, timeout: float | None = None) -> str:
        """Waits until the job has ended, and returns its state. Without a `timeout` in seconds, waits for as
        long as it takes; a restart of the server meanwhile does no harm.

        Raises DeadlineExceeded if the job has not ended in time.
        """
        end = None if timeout is None else monotonic() + timeout
        lost: float | None = None
        while True:
            wait = _WAIT if end is None else max(0.0, min(_WAIT, end - monotonic()))
            try:
                if await self._ask(b"GET", f"{self._path}?wait={wait:.3f}", wait + _MARGIN) not in _WAITING:
                    return self.state
                lost = None
            except (ConnectionFailed, Unavailable):
                lost = lost or monotonic()
                if monotonic() - lost > self._client.options.timeout:
                    raise
                await asyncio.sleep(_PAUSE)
            if end is not None and monotonic() >= end:
                raise DeadlineExceeded(f"job {self.id} is {self.state} after {timeout:g} s: wait longer")

    async def result(self, timeout: float | None = None) -> InferResult:
        """Waits until the job has ended, and returns its result. Raises the job's error if it has failed, and
        BacklineError if it was cancelled or has expired.
        """
        await self.wait(timeout)
        answer = await _ask(self._client, b"GET", f"{self._path}/result", self._client.options.timeout)
        return InferResult(decode_infer(self._client.address.url, answer), None)

    async def cancel(self, timeout: float | None = None) -> str:
        """Cancels the job if it has not ended, and returns its state."""
        limit = self._client._limit(timeout)
        if await self.refresh(limit) in _WAITING:
            answer = await _ask(self._client, b"DELETE", self._path, limit)
            if answer.status == 200:
                self.document = (await _transport(self._client)).document(self._path.encode(), answer)
        return self.state

    async def retry(self, timeout: float | None = None) -> str:
        """Queues a failed, cancelled or expired job again, and returns its state."""
        return await self._ask(b"POST", f"{self._path}/retry", self._client._limit(timeout))


class Job:
    """A job on a server: the synchronous form of AsyncJob."""

    def __init__(self, loop: Runner, job: AsyncJob) -> None:
        self._loop = loop
        self._job = job

    def __repr__(self) -> str:
        return repr(self._job).replace("AsyncJob", "Job", 1)

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def state(self) -> str:
        """queued, running, done, failed, cancelled or expired, as of the last response."""
        return self._job.state

    @property
    def document(self) -> dict[str, Any]:
        """What the server said last."""
        return self._job.document

    def refresh(self, timeout: float | None = None) -> str:
        """Asks the server for the state, and returns it."""
        return self._loop.run(self._job.refresh(timeout))

    def wait(self, timeout: float | None = None) -> str:
        """Waits until the job has ended, and returns its state; see AsyncJob.wait."""
        return self._loop.run(self._job.wait(timeout))

    def result(self, timeout: float | None = None) -> InferResult:
        """Waits until the job has ended, and returns its result; see AsyncJob.result."""
        return self._loop.run(self._job.result(timeout))

    def cancel(self, timeout: float | None = None) -> str:
        """Cancels the job if it has not ended, and returns its state."""
        return self._loop.run(self._job.cancel(timeout))

    def retry(self, timeout: float | None = None) -> str:
        """Queues a failed, cancelled or expired job again, and returns its state."""
        return self._loop.run(self._job.retry(timeout))
