"""One HTTP/1.1 request answered by a stream of server-sent events, on a dedicated connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Sequence

import httptools

from backline_client.client.address import Address
from backline_client.client.errors import ConnectionLost, DeadlineExceeded, ProtocolError
from backline_client.client.http_connection import HttpAnswer
from backline_client.client.http_pool import refused
from backline_client.values.tensor import Buffer

_READ = 64 * 1024
_EVENT_STREAM = b"text/event-stream"
#: The maximum size of an event in bytes.
_LARGEST_EVENT = 1024 * 1024 * 1024


class EventReader:
    """Parses the bytes of a response into the data of its events."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = bytearray()
        #: The position up to which the buffer has been searched for the end of an event.
        self._searched = 0
        self.headers: dict[bytes, bytes] = {}
        self.begun = False
        self.complete = False

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def is_events(self) -> bool:
        return self.headers.get(b"content-type", b"").lower().startswith(_EVENT_STREAM)

    @property
    def body(self) -> bytes:
        """The body received so far, if the response is not an event stream."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> None:
        """Adds received bytes. Raises ProtocolError if the bytes are malformed, or an event is too large."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ProtocolError(
                f"the server does not respond in HTTP/1.1 ({error}); it sent {data[:40]!r}"
            ) from None
        if len(self._buffer) > _LARGEST_EVENT:
            raise ProtocolError("the server sent an event of more than 1 GiB")

    def next(self) -> bytes | None:
        """Returns the data of the next complete event that has data, or None if more bytes are needed."""
        while (end := self._buffer.find(b"\n\n", self._searched)) >= 0:
            lines = bytes(self._buffer[:end]).split(b"\n")
            del self._buffer[: end + 2]
            self._searched = 0
            data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
            if data:
                return b"\n".join(data)
        self._searched = max(0, len(self._buffer) - 1)
        return None

    # callbacks of the parser (httptools)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.begun = self.status >= 200
        if not self.begun:
            self.headers.clear()

    def on_body(self, chunk: bytes) -> None:
        # Lines may also end with \r\n.
        self._buffer += chunk.replace(b"\r\n", b"\n")

    def on_message_complete(self) -> None:
        self.complete = self.begun


async def stream_events(
    address: Address,
    context: ssl.SSLContext | None,
    parts: Sequence[Buffer],
    *,
    advice: str,
    connect_timeout: float,
    timeout: float,
) -> AsyncGenerator[bytes | HttpAnswer, None]:
    """Sends a request and yields the data of each event. A response that reports an error, or is not an event
    stream, is yielded as an HttpAnswer.

    `timeout` is the maximum time, in seconds, for which the server may send nothing. `advice` is appended to
    the error if the connection ends before the server has sent a byte. Closing the generator closes the
    connection, which cancels the request. Raises ConnectionFailed, DeadlineExceeded and ProtocolError.
    """
    reader, writer = await _connect(address, context, connect_timeout)
    events = EventReader()
    got = "before it answered"
    try:
        for part in parts:
            writer.write(part)
        while True:
            try:
                async with asyncio.timeout(timeout):
                    await writer.drain()
                    data = await reader.read(_READ)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"no response from {address.url} within {timeout:.3g} s; the request was cancelled"
                ) from None
            except OSError as error:
                raise ConnectionLost(
                    f"the connection to {address.url} broke: {error}; the request may have run.{advice}"
                ) from None
            if data:
                got, advice = "in the middle of its response", ""
                events.feed(data)
            if events.begun and events.is_events:
                while (event := events.next()) is not None:
                    # The HTTP status reports the outcome of the first event. No event follows an error.
                    yield event if events.status == 200 else HttpAnswer(events.status, events.headers, event)
            if events.complete or (not data and events.begun and b"transfer-encoding" not in events.headers):
                break
            if not data:
                raise ConnectionLost(
                    f"{address.url} closed the connection {got}; the request may have run.{advice}"
                )
        if not events.is_events:
            yield HttpAnswer(events.status, events.headers, events.body)
    finally:
        writer.transport.abort()


async def _connect(
    address: Address, context: ssl.SSLContext | None, timeout: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(timeout):
            if address.unix:
                return await asyncio.open_unix_connection(address.path, limit=_READ)
            host = address.certified if context else None
            return await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=host, limit=_READ
            )
    except OSError as error:
        raise refused(address, timeout, error) from None
