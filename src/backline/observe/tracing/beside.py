"""A writer of traces, and another one that is told besides."""

from __future__ import annotations

from typing import Any, Generic

from backline.observe.tracing.trace import Exchange, Kept, RequestTrace, TraceWriter


class ToldBeside(Generic[Kept]):
    """Fits TraceWriter: what is kept is the first one's, the second only hears of ends."""

    def __init__(self, writer: TraceWriter[Kept], beside: TraceWriter[Any]) -> None:
        self._writer = writer
        self._beside = beside
        self.arrived = writer.arrived
        self.began = writer.began
        self.context = writer.context
        self.responded = writer.responded
        self.flush = writer.flush
        self.close = writer.close

    def ended(self, request: RequestTrace[Kept]) -> None:
        self._writer.ended(request)
        self._beside.ended(request)

    def answered(self, exchange: Exchange[Kept]) -> None:
        self._writer.answered(exchange)
        self._beside.answered(exchange)
