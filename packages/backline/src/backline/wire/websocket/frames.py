"""WebSocket frames (RFC 6455, section 5): parses the frames of clients, and builds the headers of the
server's frames.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from backline.wire.application import Buffer

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LONGEST_CONTROL: Final = 125
_FIN, _RESERVED, _MASKED = 0x80, 0x70, 0x80
#: The maximum number of frames handled without a pause. A frame of only six bytes takes microseconds.
_FRAMES = 64
#: The headers of a message's fragments may be as large as the message itself, plus this number of bytes.
_FRAMING = 64 * 1024


class Opcode(IntEnum):
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


_OPCODES = {int(opcode): opcode for opcode in Opcode}


class CloseCode(IntEnum):
    """Codes for the reasons why a connection ends (RFC 6455, section 7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011


class WebSocketError(Exception):
    """Raised when a client violates the protocol or exceeds a limit. The connection is then closed with
    `code`.
    """

    def __init__(self, code: CloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Received:
    """A complete message (TEXT or BINARY), or a control frame."""

    opcode: Opcode
    data: bytes


def accept_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Returns the value of Sec-WebSocket-Accept for a handshake, or None if the handshake is invalid (section
    4.2.1).

    The version must be 13, and the key must encode 16 bytes in base64.
    """
    key = headers.get(b"sec-websocket-key", b"")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        valid = False
    if not valid or headers.get(b"sec-websocket-version") != b"13":
        return None
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def frame(opcode: Opcode, size: int) -> bytes:
    """Returns the header of a server's unfragmented frame with a payload of `size` bytes."""
    first = bytes((_FIN | opcode,))
    if size <= _LONGEST_CONTROL:
        return first + bytes((size,))
    if size < 1 << 16:
        return first + b"\x7e" + size.to_bytes(2, "big")
    return first + b"\x7f" + size.to_bytes(8, "big")


def close_payload(code: CloseCode, reason: str) -> bytes:
    """Returns the payload of a close frame. The reason is truncated to fit into a control frame."""
    text = reason.encode()[: _LONGEST_CONTROL - 2].decode(errors="ignore")
    return code.to_bytes(2, "big") + text.encode()


class MessageReader:
    """Assembles frames into messages. Does no I/O."""

    def __init__(self, excess: Callable[[int], str | None]) -> None:
        """`excess(size)` returns why a message of `size` bytes is too large, or None if it is not."""
        self._excess = excess
        #: Received bytes that have not been parsed yet.
        self._data = bytearray()
        self._message = bytearray()
        self._control = bytearray()
        #: The opcode of the message that has partly arrived; None between messages.
        self._kind: Opcode | None = None
        #: The frame whose payload is arriving: its opcode, whether it is the last of its message, its mask
        #: (rotated as bytes arrive), and the number of bytes still missing. A negative number means that no
        #: frame has begun.
        self._opcode = Opcode.CONTINUATION
        self._final = False
        self._mask = b""
        self._missing = -1
        #: The total size of the headers of the fragments of the message that is arriving.
        self._framing = 0
        #: Whether `next` has returned None although there may be further frames.
        self.stopped = False

    @property
    def held(self) -> int:
        """The number of bytes that the reader holds in memory."""
        return len(self._data) + len(self._message)

    @property
    def within(self) -> bool:
        """Whether a frame or a message has begun but is not complete."""
        return bool(self._data) or self._missing >= 0 or self._kind is not None

    def feed(self, data: Buffer) -> None:
        self._data += data

    def next(self) -> Received | None:
        """Returns the next message or control frame, or None if more bytes are needed.

        Also returns None after many fragments, and then sets `stopped`; in that case, call `next` again.
        Raises WebSocketError if the bytes violate the protocol.
        """
        self.stopped = False
        for _ in range(_FRAMES):
            if self._missing < 0 and not self._begin():
                return None
            taken = min(self._missing, len(self._data))
            if taken:
                piece = _unmasked(self._data[:taken], self._mask)
                del self._data[:taken]
                (self._control if self._opcode >= Opcode.CLOSE else self._message).extend(piece)
                turn = taken % 4
                self._mask = self._mask[turn:] + self._mask[:turn]
                self._missing -= taken
            if self._missing:
                return None
            self._missing = -1
            complete = self._complete()
            if complete is not None:
                return complete
        self.stopped = True
        return None

    def _begin(self) -> bool:
        """Parses the header of a frame. Returns False if the header is incomplete, and raises WebSocketError
        if it is invalid.
        """
        data = self._data
        if len(data) < 2:
            return False
        opcode, size = data[0] & 0x0F, data[1] & 0x7F
        # This check does not wait for the rest of the header, so that a client that speaks another protocol
        # is refused after its first two bytes.
        if data[0] & _RESERVED:
            raise WebSocketError(
                CloseCode.PROTOCOL_ERROR, "a reserved bit is set, but no extension was agreed on"
            )
        kind, final = _OPCODES.get(opcode), bool(data[0] & _FIN)
        if kind is None:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is unknown")
        if not data[1] & _MASKED:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a client must mask its frames")
        if kind >= Opcode.CLOSE and (size > _LONGEST_CONTROL or not final):
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented or above 125 bytes")
        if kind < Opcode.CLOSE and (kind is Opcode.CONTINUATION) != (self._kind is not None):
            raise WebSocketError(
                CloseCode.PROTOCOL_ERROR,
                "a message begins before the previous one has ended, or a continuation frame has no message",
            )
        extra = {126: 2, 127: 8}.get(size, 0)
        if len(data) < 2 + extra + 4:
            return False
        if extra:
            size = int.from_bytes(data[2 : 2 + extra], "big")
        if kind < Opcode.CLOSE and (excess := self._excess(len(self._message) + size)) is not None:
            raise WebSocketError(CloseCode.TOO_BIG, excess)
        if kind < Opcode.CLOSE:
            self._framing += 6 + extra
            if self._framing > len(self._message) + size + _FRAMING:
                raise WebSocketError(
                    CloseCode.POLICY, "a message has too many small fragments; send larger ones"
                )
        self._opcode, self._final, self._missing = kind, final, size
        self._mask = bytes(data[2 + extra : 6 + extra])
        del data[: 6 + extra]
        if kind in (Opcode.TEXT, Opcode.BINARY):
            self._kind = kind
        return True

    def _complete(self) -> Received | None:
        """Returns the message or control frame that a complete frame ends, or None if further fragments
        follow. Raises WebSocketError if a text message is not UTF-8.
        """
        if self._opcode >= Opcode.CLOSE:
            found = Received(self._opcode, bytes(self._control))
            self._control.clear()
            return found
        if not self._final or self._kind is None:
            return None
        kind, self._kind = self._kind, None
        self._framing = 0
        message, self._message = bytes(self._message), bytearray()
        if kind is Opcode.TEXT:
            try:
                message.decode()
            except UnicodeDecodeError:
                raise WebSocketError(CloseCode.INVALID_DATA, "a text message is not UTF-8") from None
        return Received(kind, message)


def _unmasked(data: bytearray, mask: bytes) -> bytes:
    """Returns the payload XORed with the mask, which is repeated as necessary. Payload and mask are converted
    to integers, so that a single operation is enough.
    """
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")
