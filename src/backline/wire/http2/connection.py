"""A server's HTTP/2 connection (RFC 9113): its lifetime, streams, control frames and time limits."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from backline.wire.connection import Connection, Wire
from backline.wire.grpc.timeout import Deadlines
from backline.wire.http2 import frames
from backline.wire.http2.admission import Admission
from backline.wire.http2.frame_reader import FrameReader, check_dependency
from backline.wire.http2.frames import ConnectionFailure, FrameAllowance, StreamFailure
from backline.wire.http2.header_blocks import HeaderBlocks
from backline.wire.http2.output import Output
from backline.wire.http2.read_ahead import DirectProtocol
from backline.wire.http2.request_head import RequestHead, check_trailers
from backline.wire.http2.stream import Stream, StreamTable

log = logging.getLogger("backline.wire")

#: For this many seconds after GOAWAY, received bytes are read and dropped: unread bytes would reset the
#: connection.
_LINGER = 0.5
#: Seconds between the two GOAWAYs of a drain, unless the client acknowledges a PING earlier.
_DRAIN_GRACE = 0.5
_DRAIN_PING = b"draining"
_KEEPALIVE_PING = b"standing"


class Http2Connection(Connection):
    """A connection with its parts. It handles everything that `FrameReader` reads except DATA.

    DATA goes from the reader directly to the streams. Streams respond through `output`, which calls
    `finished` when a response has been sent.

    Invariant: each stream in `streams.open` counts once toward the server's and its peer's totals, from
    `open` to `remove`.
    """

    #: These four are set by `attach`.
    transport: asyncio.Transport
    output: Output
    admission: Admission
    reader: FrameReader

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.loop = wire.loop
        self.streams = StreamTable()
        self._max_streams = wire.limits.max_concurrent_streams
        self._closing = False
        self._lost = False
        #: The number of requests whose response has been sent.
        self.answered = 0
        self.deadlines = Deadlines(wire.loop, self.streams.open.__len__)
        #: Bytes with which the next header block must start. Once the client has chosen a smaller dynamic
        #: table, the block must resize the table (RFC 7541, section 4.2). The new size is 0, since the server
        #: does not use the table.
        self.block_prefix = b""
        #: The lock that is held while the handler of a streaming call waits for a large message.
        self.large_messages = asyncio.Lock()
        self._allowance = FrameAllowance(wire.limits)
        self.max_requests = wire.peers.max_requests
        #: The number of SETTINGS frames that the client has not acknowledged, and the time since when.
        self._unacknowledged = 0
        self._unacknowledged_since = 0.0
        self._draining = False
        #: The number of the last stream to be served; None until the final GOAWAY is sent.
        self._final_stream: int | None = None
        self._swept_reads = -1
        #: The value of `output.sent` when the client was last found to read fast enough, which was at
        #: `_took_enough`.
        self._swept_sent = 0
        self._quiet_since = self._idle_since = self._opened = self._took_enough = time.monotonic()
        self._keepalive_sent = False

    # Lifetime

    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        self.transport = transport
        self._blocks = HeaderBlocks(self.wire.application, self.wire.limits, self.ingress)
        limits = self.wire.limits
        transport.set_write_buffer_limits(high=limits.max_unsent_bytes, low=limits.max_unsent_bytes // 4)
        self.output = Output(transport, self.loop, limits.max_unsent_bytes, self.finished, self._relieved)
        self.admission = Admission(self.wire, self.streams.open, self.output)
        self.reader = FrameReader(self, self.wire, transport, self.output, self.streams, self._blocks)
        self.wire.connections.add(self)
        self.peer = self.wire.peers.join(transport)
        self.output.write(frames.server_preface(limits))
        self.expect_acknowledgement()
        if received:
            self.data_received(received)
        if self.wire.draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        self.reader.data_received(data)

    def receive_directly(self) -> None:
        """Makes the connection receive large messages directly into their buffers from now on, unless it is
        encrypted.
        """
        connected = self.transport.get_extra_info("socket")
        encrypted = self.transport.get_extra_info("ssl_object") is not None
        if self.reader.descriptor < 0 and connected is not None and not encrypted and hasattr(os, "readv"):
            self.reader.descriptor = connected.fileno()
            self.transport.set_protocol(DirectProtocol(self, self.reader))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._closing = True
        self.reader.lose()
        self.output.closed = True
        self.deadlines.cancel()
        self.wire.unsent.forget(self)
        self.wire.connections.discard(self)
        self._abandon()
        self.wire.peers.leave(self.peer)

    def _relieved(self) -> None:
        self.admission.stir()

    def eof_received(self) -> bool:
        # A client that closed its sending half can neither update windows nor complete requests.
        return False

    def unsent(self) -> tuple[int, int]:
        size = self.transport.get_write_buffer_size()
        return self.output.held + size, size

    def pause_writing(self) -> None:
        self.output.paused = True
        self.reader.pause_for_writes()
        self.wire.unsent.count(self)

    def resume_writing(self) -> None:
        self.wire.unsent.count(self)
        self.output.paused = False
        self.reader.end_write_pause()
        self.output.pump()
        self.reader.resume()

    def abort(self) -> None:
        self.output.closed = True
        self._closing = True
        self.transport.abort()
        self.reader.stop()

    def drain(self) -> None:
        if self._draining or self._closing:
            return
        self._draining = True
        if not self.reader.preface_done:
            self._close()
            return
        # Requests in transit are still served: all of them have arrived once the client acknowledges the
        # PING.
        self.output.write(
            frames.goaway(frames.MAX_WINDOW, frames.NO_ERROR) + frames.frame(frames.PING, 0, 0, _DRAIN_PING)
        )
        self.loop.call_later(_DRAIN_GRACE, self._drained)

    def _drained(self) -> None:
        if self._final_stream is None and not self._closing:
            self._final_stream = self.streams.last
            self.output.write(frames.goaway(self.streams.last, frames.NO_ERROR))
            if not self.streams.open:
                self._close()

    def _close(self) -> None:
        """Closes the connection once everything written has been sent."""
        if self._closing:
            return
        self.output.flush()
        self._closing = True
        self._quiet_since = time.monotonic()
        self.output.closed = True
        if not self._lost:
            if self.transport.can_write_eof():
                self.transport.write_eof()
                self.reader.stop()
                self.loop.call_later(_LINGER, self.transport.close)
            else:
                self.transport.close()
                self.reader.stop()

    def fail(self, failure: ConnectionFailure) -> None:
        if self._closing:
            return
        log.debug("connection closed: %s", failure.reason)
        self.output.write(frames.goaway(self.streams.last, failure.code, failure.reason.encode()))
        self._close()
        self._abandon()

    def _abandon(self) -> None:
        for stream in list(self.streams.open.values()):
            if not stream.closed:  # a callback of an earlier stream may have completed it
                self.remove(stream)
                stream.lost()

    # Time limits

    def sweep(self, now: float) -> None:
        limits = self.wire.limits
        self.wire.unsent.count(self)
        if self._closing:
            if now - self._quiet_since > limits.progress_timeout:
                # The client does not read what was written before closing.
                self.transport.abort()
            return
        quiet = self.reader.reads == self._swept_reads
        self._swept_reads = self.reader.reads
        if not quiet:
            self._quiet_since = now
            self._keepalive_sent = False
        if self.reader.mid_frame:
            if (
                now - (self._quiet_since if self.reader.preface_done else self._opened)
                > limits.header_timeout
            ):
                self.fail(ConnectionFailure(frames.PROTOCOL_ERROR, "a frame did not arrive in time"))
            return
        if self._unacknowledged and now - self._unacknowledged_since > limits.header_timeout:
            self.fail(ConnectionFailure(frames.SETTINGS_TIMEOUT, "SETTINGS was not acknowledged in time"))
            return
        stuck = self.reader.write_blocked and quiet and now - self._quiet_since > limits.progress_timeout
        if stuck or self._reads_too_slowly(now):
            self.abort()
            return
        if self.streams.open:
            self._idle_since = now
        else:
            if quiet and now - max(self._quiet_since, self._idle_since) > limits.idle_timeout:
                self.fail(ConnectionFailure(frames.NO_ERROR, "the connection was idle for too long"))
            return
        if now - self._quiet_since > limits.idle_timeout + limits.progress_timeout:
            self.abort()
            return
        if now - self._quiet_since > limits.idle_timeout and not self._keepalive_sent:
            self._keepalive_sent = True
            self.output.write(frames.frame(frames.PING, 0, 0, _KEEPALIVE_PING))
        for stream in list(self.streams.open.values()):
            progress = stream.received + stream.sent
            if progress != stream.swept or stream in self.wire.uploads.waiting:
                stream.swept = progress
                stream.progressed = now
            elif now - stream.progressed > limits.progress_timeout:
                if stream.pending_bytes:
                    self.reset(stream, frames.CANCEL)
                elif stream.awaits_client():
                    stream.timed_out()
                elif stream.streaming and now - stream.progressed > limits.stream_idle_timeout:
                    stream.idle_too_long()

    def _reads_too_slowly(self, now: float) -> bool:
        """Returns whether the client reads too slowly. Opening windows a few bytes at a time does not count
        as progress.
        """
        limits = self.wire.limits
        output = self.output
        if (
            output.held <= limits.max_unsent_bytes
            or output.sent - self._swept_sent >= limits.min_taking_rate * limits.progress_timeout
        ):
            self._swept_sent = output.sent
            self._took_enough = now
        return now - self._took_enough > limits.progress_timeout

    # Requests

    def headers(self, number: int, block: bytes, ends: int) -> None:
        if not number & 1:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "HEADERS on a stream that clients cannot open")
        stream = self.streams.open.get(number)
        if stream is not None:
            self._trailers(stream, block, ends)
        elif number > self.streams.last:
            self.streams.note(number)
            self.open(number, self._blocks.request(block), ends)
        else:
            # The block is decoded anyway, to keep the HPACK tables in step.
            self._blocks.fields(block)
            self.spend(1)
            if self.streams.was_reset_by_client(number):
                self.send_reset(number, frames.STREAM_CLOSED)
            elif self.streams.was_skipped(number):
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "a stream number is below an earlier one")
            elif not self.streams.was_reset(number):
                raise ConnectionFailure(frames.STREAM_CLOSED, "HEADERS on a closed stream")

    def _trailers(self, stream: Stream, block: bytes, ends: int) -> None:
        fields = self._blocks.fields(block)
        if not stream.remote_open:
            raise StreamFailure(frames.STREAM_CLOSED, "HEADERS after the end of the stream")
        if not ends:
            raise StreamFailure(frames.PROTOCOL_ERROR, "trailers do not end the stream")
        check_trailers(fields)
        stream.feed(b"", 0, 0, 1)

    def open(self, number: int, head: RequestHead, ends: int) -> None:
        if number > self.streams.last:
            self.streams.note(number)
        wire = self.wire
        streams = self.streams.open
        if len(streams) >= self._max_streams or self._final_stream is not None:
            self.spend(1)
            self.send_reset(number, frames.REFUSED_STREAM)
            return
        stream = head.exchange(self, number, head)
        streams[number] = stream
        if stream.streaming:
            wire.streams += 1
            self.peer.streams += 1
        else:
            wire.requests += 1
            self.peer.requests += 1
        if head.prompt or wire.requests > self.max_requests:
            stream.begin()
        if ends and not stream.closed:
            stream.feed(b"", 0, 0, 1)

    def header_frames(self, number: int, block: bytes, flags: int = 0) -> bytes:
        """Returns the frames of a response's header block."""
        if self.block_prefix:
            block = self.block_prefix + block
            self.block_prefix = b""
        return frames.header_frames(number, block, flags, self.output.max_frame_size)

    def finished(self, stream: Stream) -> None:
        """Removes a stream whose response has been sent completely."""
        self.answered += 1
        self.remove(stream)
        if stream.remote_open:
            # The rest of the request is not needed (RFC 9113, section 8.1).
            self.send_reset(stream.number, frames.NO_ERROR)

    def remove(self, stream: Stream) -> None:
        stream.closed = True
        del self.streams.open[stream.number]
        wire = self.wire
        if stream.streaming:
            wire.streams -= 1
            self.peer.streams -= 1
        else:
            wire.requests -= 1
            self.peer.requests -= 1
        if stream.pending is not None or stream.compressing:
            self.output.drop(stream)
        if stream.buffered:
            wire.buffered_bytes -= stream.buffered
            stream.buffered = 0
        if stream.upload_size:
            stream.leave_line()
        if stream.drained is not None:
            stream.wake()
        if stream.waiting:
            self.admission.withdraw(stream)
        if self.admission.waiting:
            self.admission.stir()
        if self._final_stream is not None and not self.streams.open and not self._lost:
            self.loop.call_soon(self._close)

    def reset(self, stream: Stream, code: int) -> None:
        """Resets a stream unless it is closed, and abandons its request."""
        if not stream.closed:
            self.remove(stream)
            self.send_reset(stream.number, code)
            stream.lost()

    def send_reset(self, number: int, code: int) -> None:
        self.streams.record_reset(number, by_client=False)
        self.output.write(frames.rst_stream(number, code))

    def fail_stream(self, number: int, failure: StreamFailure) -> None:
        # Security: provoking stream errors must not be a free way to make the server work.
        self.spend(1)
        stream = self.streams.open.get(number)
        if stream is not None:
            self.reset(stream, failure.code)
        else:
            self.send_reset(number, failure.code)

    def spend(self, cost: float) -> None:
        self._allowance.spend(cost, self.answered, self.output.data_frames)

    # Frames other than DATA

    def expect_acknowledgement(self) -> None:
        if not self._unacknowledged:
            self._unacknowledged_since = time.monotonic()
        self._unacknowledged += 1

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._window_update(number, payload)
        elif kind == frames.PING:
            self._ping(flags, number, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, number, payload)
        elif kind == frames.RST_STREAM:
            self._rst_stream(number, payload)
        elif kind == frames.PRIORITY:
            self.spend(1)
            if not number:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if len(payload) != 5:
                raise StreamFailure(frames.FRAME_SIZE_ERROR, "PRIORITY is not 5 octets long")
            check_dependency(payload, number)
        elif kind == frames.GOAWAY:
            self.spend(1)
            if number:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "GOAWAY on a stream")
            if len(payload) < 8:
                raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 octets")
            # The client is closing the connection: its open requests are still answered.
            self._drained()
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        else:
            self.spend(1)

    def _window_update(self, number: int, payload: bytes) -> None:
        self.spend(1)
        if len(payload) != 4:
            raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 octets long")
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not number:
            if not increment:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.output.widen(increment)
            return
        stream = self.streams.open.get(number)
        if stream is None:
            self.streams.check_not_idle(number)
            return
        if not increment:
            raise StreamFailure(frames.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.credit += increment
        if self.output.initial_window + stream.credit > frames.MAX_WINDOW:
            raise StreamFailure(frames.FLOW_CONTROL_ERROR, "the stream's window exceeds 2^31-1")
        if stream.pending_bytes:
            self.output.enqueue(stream)

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "PING is not 8 octets long")
        self.spend(1)
        if not flags & frames.ACK:
            self.output.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAIN_PING and self._draining:
            self._drained()

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        self.spend(1)
        if flags & frames.ACK:
            if payload:
                raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "a SETTINGS acknowledgement has a payload")
            self._unacknowledged = max(0, self._unacknowledged - 1)
            self._unacknowledged_since = time.monotonic()
            return
        output = self.output
        for key, value in frames.parse_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                self._change_windows(value)
            elif key == frames.MAX_FRAME_SIZE:
                output.max_frame_size = value
            elif key == frames.HEADER_TABLE_SIZE and value < 4096:
                self.block_prefix = b"\x20"
        # The client enforces the old windows until it reads the acknowledgement, so DATA must be sent after
        # it.
        output.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        output.pump()

    def _change_windows(self, initial: int) -> None:
        """Applies INITIAL_WINDOW_SIZE to all open streams, and charges the client's frame allowance for each
        stream.
        """
        self.spend(len(self.streams.open) / 8)
        output = self.output
        output.initial_window = initial
        for stream in self.streams.open.values():
            window = initial + stream.credit
            if window > frames.MAX_WINDOW:
                raise ConnectionFailure(
                    frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE raises a stream's window above 2^31-1"
                )
            if stream.pending_bytes and window > 0:
                output.make_ready(stream)

    def _rst_stream(self, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        if len(payload) != 4:
            raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "RST_STREAM is not 4 octets long")
        self.spend(1)
        stream = self.streams.open.get(number)
        if stream is None:
            self.streams.check_not_idle(number)
            return
        self.streams.record_reset(number, by_client=True)
        self.remove(stream)
        stream.lost()
