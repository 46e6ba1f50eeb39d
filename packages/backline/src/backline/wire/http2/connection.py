"""A server's HTTP/2 connection (RFC 9113): its lifetime, streams and control frames."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial

from backline.wire.connection import Connection, LostTransport, Wire
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
from backline.wire.http2.time_limits import Http2TimeLimits

log = logging.getLogger("backline.wire")

#: For this many seconds after GOAWAY, received bytes are read and dropped, because closing a socket with
#: unread bytes would reset the connection.
_LINGER = 0.5
#: Seconds between the two GOAWAY frames of a drain, unless the client acknowledges the PING earlier.
_DRAIN_GRACE = 0.5
_DRAIN_PING = b"draining"


class Http2Connection(Connection):
    """An HTTP/2 connection. It handles all frames that its `FrameReader` reads, except DATA.

    DATA goes from the reader directly to the streams. Streams respond through `output`, which calls
    `finished` when a response has been sent.

    Invariant: each stream in `streams.open` counts once toward the totals of the server and of the stream's
    peer, from `open` to `remove`.
    """

    #: `attach` sets `transport`, `output`, `admission` and `reader`.
    transport: asyncio.Transport
    output: Output
    admission: Admission
    reader: FrameReader

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.loop = wire.loop
        self.streams = StreamTable()
        self._max_streams = wire.limits.max_concurrent_streams
        #: Whether the connection no longer handles or sends anything.
        self.closing = False
        self._lost = False
        #: The number of requests whose response has been sent.
        self.answered = 0
        self.deadlines = Deadlines(wire.loop, self.streams.open.__len__)
        #: Bytes with which the next header block must start; usually none. If the client has reduced the
        #: maximum size of the dynamic table, the block must start with a size update (RFC 7541, section 4.2).
        #: The new size is 0, because the server does not use the table.
        self.block_prefix = b""
        #: The lock that is held while the handler of a streaming call takes a large message.
        self.large_messages = asyncio.Lock()
        self._allowance = FrameAllowance(wire.limits)
        self.max_requests = wire.peers.max_requests
        self._draining = False
        #: The number of the last stream to be served; None until the final GOAWAY is sent.
        self._final_stream: int | None = None
        self.time_limits = Http2TimeLimits()

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
        self.wire.next_check = 0.0
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
        """Makes the connection receive large messages directly into their buffers from now on, if it is not
        encrypted and the system has readv(2).
        """
        connected = self.transport.get_extra_info("socket")
        encrypted = self.transport.get_extra_info("ssl_object") is not None
        if self.reader.descriptor < 0 and connected is not None and not encrypted and hasattr(os, "readv"):
            self.reader.receive_directly(connected.fileno())
            self.transport.set_protocol(DirectProtocol(self, self.reader))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self.closing = True
        self.transport = lost = LostTransport(self.transport)
        self.reader.lose(lost)
        self.output.lose(lost)
        self.deadlines.cancel()
        self.wire.unsent.forget(self)
        self.wire.connections.discard(self)
        self._abandon()
        # `leave` is called last, because removing the streams still changes the counts of the peer.
        self.wire.peers.leave(self.peer)

    def _relieved(self) -> None:
        self.admission.stir()

    def eof_received(self) -> bool:
        # False makes the transport close the connection: a client that has closed its sending half can
        # neither update windows nor complete requests.
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
        self.closing = True
        self.transport.abort()
        self.reader.stop()

    def drain(self) -> None:
        if self._draining or self.closing:
            return
        self._draining = True
        if not self.reader.preface_done:
            self._close()
            return
        # This first GOAWAY refuses no stream, so that requests in transit are still served. All of them have
        # arrived once the client acknowledges the PING.
        self.output.write(
            frames.goaway(frames.MAX_WINDOW, frames.NO_ERROR) + frames.frame(frames.PING, 0, 0, _DRAIN_PING)
        )
        self.loop.call_later(_DRAIN_GRACE, self._drained)

    def _drained(self) -> None:
        if self._final_stream is None and not self.closing:
            self._final_stream = self.streams.last
            self.output.write(frames.goaway(self.streams.last, frames.NO_ERROR))
            if not self.streams.open:
                self._close()

    def _close(self) -> None:
        """Closes the connection once everything written has been sent."""
        if self.closing:
            return
        self.output.flush()
        self.closing = True
        self.time_limits.closing()
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
        if self.closing:
            return
        log.debug("connection closed: %s", failure.reason)
        self.output.write(frames.goaway(self.streams.last, failure.code, failure.reason.encode()))
        # The connection closes before the streams are abandoned, so that no frame of a stream follows GOAWAY.
        self._close()
        self._abandon()

    def _abandon(self) -> None:
        for stream in list(self.streams.open.values()):
            if not stream.closed:  # a callback of an earlier stream may have completed it
                self.remove(stream)
                stream.lost()

    def sweep(self, now: float) -> None:
        self.wire.unsent.count(self)
        self.time_limits.check(self, now)

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
            # The block is decoded even though the stream is not open: otherwise the HPACK tables of both
            # sides would differ.
            self._blocks.fields(block)
            self.spend(1)
            if self.streams.was_reset_by_client(number):
                self.send_reset(number, frames.STREAM_CLOSED)
            elif self.streams.was_skipped(number):
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "a stream number is below an earlier one")
            elif not self.streams.was_reset(number):
                raise ConnectionFailure(frames.STREAM_CLOSED, "HEADERS on a closed stream")

    def _trailers(self, stream: Stream, block: bytes, ends: int) -> None:
        # The block is decoded before all checks, because a check may end only the stream, and the HPACK
        # tables of both sides must remain equal.
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
        # The stream is registered and counted before `begin`, because `begin` may respond immediately, and a
        # response removes the stream.
        streams[number] = stream
        if head.apart:
            self._open_apart(stream, ends)
            return
        wire.requests += 1
        self.peer.requests += 1
        if head.prompt or wire.requests > self.max_requests:
            stream.begin()
        if ends and not stream.closed:
            stream.feed(b"", 0, 0, 1)

    def _open_apart(self, stream: Stream, ends: int) -> None:
        """Opens a streaming call or a vital request."""
        if stream.streaming:
            stream.counted_apart = self.stream_ends
            self.stream_begins()
        else:
            stream.counted_apart = partial(self.wire.vital.end, stream)
            self.wire.vital.begin(stream, self.peer)
        stream.begin()
        if stream.closed:
            return
        if ends:
            stream.feed(b"", 0, 0, 1)
        elif not stream.streaming:
            stream.begun_without_body()

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
        # Below, each total is reduced exactly once, because only streams in `open` are removed.
        del self.streams.open[stream.number]
        wire = self.wire
        if stream.counted_apart is not None:
            stream.counted_apart()
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
            # `remove` comes before `lost`, because `lost` calls the application, which must find the stream
            # closed.
            self.remove(stream)
            self.send_reset(stream.number, code)
            stream.lost()

    def send_reset(self, number: int, code: int) -> None:
        self.streams.record_reset(number, by_client=False)
        self.output.write(frames.rst_stream(number, code))

    def fail_stream(self, number: int, failure: StreamFailure) -> None:
        # Security: each stream error is charged, so that a client cannot keep the server busy with errors.
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
        self.time_limits.settings_sent()

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
            # The client is closing the connection. Requests that it has already sent are still answered.
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
            self.time_limits.settings_acknowledged()
            return
        output = self.output
        for key, value in frames.parse_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                self._change_windows(value)
            elif key == frames.MAX_FRAME_SIZE:
                output.max_frame_size = value
            elif key == frames.HEADER_TABLE_SIZE and value < 4096:
                self.block_prefix = b"\x20"
        # The client enforces its old windows until it has read the acknowledgement, so DATA that needs the
        # new windows must follow the acknowledgement.
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
