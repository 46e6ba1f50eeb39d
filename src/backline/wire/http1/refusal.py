"""An error that the wire itself found."""

from __future__ import annotations

from dataclasses import dataclass

from backline.wire.application import Fields
from backline.wire.connection import Wire
from backline.wire.http1.head import response_head

#: For a 503: seconds.
RETRY_AFTER: Fields = ((b"retry-after", b"1"),)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to what no application sees. It takes its turn behind earlier answers; with `close` it is the last one."""

    status: int
    message: str
    close: bool = True
    fields: Fields = ()

    def render(self, wire: Wire, *, close: bool) -> bytes:
        """The whole response."""
        kind, body = wire.application.render_error(self.status, self.message)
        lines = [response_head(self.status), b"content-type: %b\r\n" % kind]
        lines += (b"%b: %b\r\n" % field for field in self.fields)
        if close:
            lines.append(b"connection: close\r\n")
        lines += (b"content-length: %d\r\n\r\n" % len(body), body)
        return b"".join(lines)
