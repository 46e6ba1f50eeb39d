"""The wire, the dialects and an engine with real models in this process, on fake transports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import hpack
from onnx import TensorProto

from backline.dialects.application import build_application
from backline.embedded.embedded import Embedded
from backline.engine.engine import Engine
from backline.engine.shared_memory import FOLDER, SharedMemory
from backline.observe.metrics import Metrics
from backline.wire.connection import Wire
from backline.wire.limits import Limits
from backline.wire.listener import Listeners
from backline.wire.sniffer import Sniffer
from conformance.h2probe import GOAWAY, HEADERS, INTERNAL_ERROR, PREFACE, RST_STREAM
from fuzz.mutations import Input
from support import models

#: Seconds within which a connection must end after the client half-closes it.
HANG = 5.0
#: Statuses caused by the client or by load. A 500 is a fault of the server.
ALLOWED_5XX = (501, 503, 504, 505)
UNKNOWN, INTERNAL = "2", "13"
#: The gRPC specification requires INTERNAL here (doc/compression.md).
RIGHTLY_INTERNAL = re.compile("compress|grpc-encoding", re.IGNORECASE)

#: Small enough that inputs reach every limit.
TIGHT = Limits(
    max_header_size=4096,
    max_header_fields=16,
    max_body_size=2048,
    max_buffered_bytes=8192,
    max_concurrent_requests=4,
    max_concurrent_streams=2,
    bytes_per_turn=512,
    frames_per_turn=4,
    idle_frames_burst=20,
    max_unsent_bytes=512,
)


class Finding(Exception):
    """A fault that an input revealed."""


class FakeTransport(asyncio.Transport):
    """A transport to the fuzzer. With `slow`, writes are consumed only in the next turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: bool) -> None:
        super().__init__()
        self._loop = loop
        self._slow = slow
        self._protocol: Any = None
        self._unsent = 0
        self._high = 64 * 1024
        self._write_paused = False
        self.written = bytearray()
        self.reading = True
        self.closing = False
        self.lost = False
        self.eof_written = False

    # the server's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (self._high // 4, self._high)

    def write(self, data: Any) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"not bytes: {type(data)}")
        if self.eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.closing:
            return
        self.written += data
        if not self._slow:
            return
        if not self._unsent:
            self._loop.call_soon(self._sent)
        self._unsent += len(data)
        if self._unsent > self._high and not self._write_paused:
            self._write_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def close(self) -> None:
        self._end()

    def abort(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        self.lost = True
        self._protocol.connection_lost(None)

    def _sent(self) -> None:
        self._unsent = 0
        if self._write_paused and not self.lost:
            self._write_paused = False
            self._protocol.resume_writing()

    # the client's side

    def deliver(self, data: bytes) -> None:
        """Delivers bytes to the protocol as an event loop would."""
        while data and not self.closing:
            protocol = self._protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                buffer = protocol.get_buffer(-1)
                size = min(len(buffer), len(data))
                if not size:
                    raise Finding("get_buffer() returned an empty buffer")
                buffer[:size] = data[:size]
                protocol.buffer_updated(size)
                data = data[size:]
            else:
                protocol.data_received(data)
                return

    def deliver_eof(self) -> None:
        if not self.closing and not self._protocol.eof_received():
            self.close()


@dataclass
class Faults(logging.Handler):
    """Logged tracebacks, and exceptions that reached the event loop."""

    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.WARNING)

    __hash__ = object.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            text = logging.Formatter().format(record)
            self.found.append(text)

    def on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.found.append(f"in the loop: {context.get('message')} {error!r}")
        if error is not None:
            import traceback

            self.found[-1] += "\n" + "".join(traceback.format_exception(error))

    def take(self) -> str:
        text = "\n".join(self.found)
        self.found.clear()
        return text


def share_memory(engine: Engine) -> None:
    """Registers 4096 bytes as "region", on systems with shared memory."""
    engine.shared_memory = memory = SharedMemory(1 << 20, 1 << 26)
    if FOLDER.is_dir():
        path = FOLDER / f"backline-fuzz-{os.getpid()}"
        path.write_bytes(bytes(4096))
        memory.register("region", path.name, 0, 4096)
        path.unlink()


class Bench:
    """Feeds inputs, one connection each, and checks the outcome."""

    def __init__(self, embedded: Embedded, faults: Faults) -> None:
        self._loop = asyncio.get_running_loop()
        share_memory(embedded.engine)
        self._application = build_application(embedded.engine, Metrics(embedded.engine).page)
        self._renew()
        self._faults = faults
        self._listeners = Listeners(Wire(self._application, Limits(), self._loop))
        self.answers = 0

    async def listen(self) -> int:
        """Opens a real port for honest clients, whose connections are not those that inputs are fed to."""
        return await self._listeners.open_tcp("127.0.0.1", 0)

    async def stop_listening(self) -> None:
        await self._listeners.close(1.0)

    def _renew(self) -> None:
        """Creates fresh wires, so that one finding does not cause another."""
        self._wires = (
            Wire(self._application, Limits(), self._loop),
            Wire(self._application, TIGHT, self._loop),
        )

    async def feed(self, number: int, one: Input) -> None:
        """Feeds one input. Raises Finding."""
        try:
            await self._feed(number, one)
        except Finding:
            await asyncio.sleep(0)
            self._faults.take()
            self._renew()
            raise

    async def _feed(self, number: int, one: Input) -> None:
        tight = not one.valid and number % 4 == 3
        wire = self._wires[tight]
        transport = FakeTransport(self._loop, slow=number % 8 >= 6)
        sniffer = Sniffer(wire)
        transport.set_protocol(sniffer)
        try:
            sniffer.connection_made(transport)
            await self._deliver(transport, one)
            if one.valid:
                await self._until(lambda: not wire.requests, "valid requests were never answered")
                # Answers are written at the end of a turn.
                for _ in range(3):
                    await asyncio.sleep(0)
            transport.deliver_eof()
        except Finding:
            raise
        except Exception as error:
            raise Finding(f"the protocol raised an exception: {error!r}") from error
        await self._until(
            lambda: transport.lost, "the connection did not end after the client half-closed it"
        )
        await self._until(
            lambda: not (wire.requests or wire.buffered_bytes or wire.connections),
            lambda: (
                f"left over: {wire.requests} requests, {wire.buffered_bytes} bytes,"
                f" {len(wire.connections)} connections"
            ),
        )
        if text := self._faults.take():
            raise Finding(text)
        written = bytes(transport.written)
        if one.data.startswith(PREFACE):
            self._check_http2(written, one.valid)
        else:
            self._check_http1(written, one.valid)

    async def _deliver(self, transport: FakeTransport, one: Input) -> None:
        for piece in one.pieces:
            # An event loop does not deliver while reading is paused.
            if not transport.is_reading() and not transport.closing:
                await self._until(
                    lambda: transport.is_reading() or transport.closing, "reading stayed paused"
                )
            if transport.closing:
                return
            transport.deliver(piece)
            await asyncio.sleep(0)

    async def _until(self, condition: Any, complaint: Any) -> None:
        for _ in range(50):
            if condition():
                return
            await asyncio.sleep(0)
        deadline = monotonic() + HANG
        while not condition():
            if monotonic() > deadline:
                raise Finding(complaint if isinstance(complaint, str) else complaint())
            await asyncio.sleep(0.001)

    def _check_http1(self, written: bytes, valid: bool) -> None:
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", written)]
        self.answers += len(statuses)
        if written and not written.startswith(b"HTTP/1.1 "):
            raise Finding(f"not an HTTP/1.1 answer: {written[:100]!r}")
        for status in statuses:
            if status >= 500 and status not in ALLOWED_5XX:
                raise Finding(f"status {status}: {written[-500:]!r}")
        if valid and not statuses:
            raise Finding("valid requests were not answered")

    def _check_http2(self, written: bytes, valid: bool) -> None:
        decoder = hpack.Decoder()
        at = 0
        streams: dict[int, dict[bytes, bytes]] = {}
        while at < len(written):
            if at + 9 > len(written):
                raise Finding("the answer ends inside a frame")
            length = int.from_bytes(written[at : at + 3], "big")
            kind = written[at + 3]
            stream = int.from_bytes(written[at + 5 : at + 9], "big")
            payload = written[at + 9 : at + 9 + length]
            at += 9 + length
            if len(payload) != length:
                raise Finding("the answer ends inside a frame")
            if kind == HEADERS:
                streams.setdefault(stream, {}).update(dict(decoder.decode(payload, raw=True)))
            if (kind == RST_STREAM and payload == INTERNAL_ERROR.to_bytes(4, "big")) or (
                kind == GOAWAY and payload[7] == INTERNAL_ERROR
            ):
                raise Finding(f"INTERNAL_ERROR {payload[8:]!r}")
        for fields in streams.values():
            self.answers += 1
            status = int(fields.get(b":status", b"200"))
            if status >= 500 and status not in ALLOWED_5XX:
                raise Finding(f"status {status}")
            code = fields.get(b"grpc-status", b"0").decode()
            message = fields.get(b"grpc-message", b"").decode()
            if code == UNKNOWN or (code == INTERNAL and not RIGHTLY_INTERNAL.search(message)):
                raise Finding(f"grpc-status {code} {message}")
            if valid and code not in ("0", "5", "12"):
                raise Finding(f"a valid call got grpc-status {code} {message}")
        if valid and not streams:
            raise Finding("valid requests were not answered")


def write_repository(repository: Path) -> None:
    models.add1(repository)
    for name, datatype in {
        "bytes": TensorProto.STRING,
        "int64": TensorProto.INT64,
        "uint8": TensorProto.UINT8,
        "bool": TensorProto.BOOL,
        "float16": TensorProto.FLOAT16,
        "float64": TensorProto.DOUBLE,
    }.items():
        models.identity_of(repository, name, datatype)


@contextlib.asynccontextmanager
async def bench(repository: Path) -> AsyncIterator[Bench]:
    """A bench with its models written to `repository`."""
    write_repository(repository)
    faults = Faults()
    logging.getLogger().addHandler(faults)
    asyncio.get_running_loop().set_exception_handler(faults.on_loop)
    embedded = Embedded([repository])
    await embedded.start()
    not_ready = [
        f"{model.name}: {model.reason}" for model in embedded.engine.models() if model.state.value != "READY"
    ]
    if not_ready:
        raise RuntimeError(f"models that did not load: {not_ready}")
    try:
        yield Bench(embedded, faults)
    finally:
        await embedded.stop()
        logging.getLogger().removeHandler(faults)
