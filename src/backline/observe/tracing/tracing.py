"""The tracing of a server: which requests are traced, where their traces go, and what clients may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic

from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.tracing import SettingValue, TraceProtocol
from backline.observe.tracing.settings import DEFAULT_URL, SettingTable, TraceConfig
from backline.observe.tracing.trace import Exchange, Kept, RequestTrace, TraceWriter

if TYPE_CHECKING:
    from backline.observe.tracing.spans import SpanWriter


class TraceWriterPair(Generic[Kept]):
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


class Tracing:
    """Follows the requests of an engine as a configuration and clients say; fits Tracer and TraceControl. Lives on the event loop.

    The engine knows it as its tracer only while there is something to trace.
    """

    def __init__(self, engine: Engine, config: TraceConfig) -> None:
        """Raises Unsupported where OpenTelemetry is wanted and is not installed, InvalidArgument for a file that cannot be written."""
        self._engine = engine
        self._config = config
        self._table = SettingTable(config.setting, config.mode)
        self._spans: SpanWriter | None = None
        self._writer: TraceWriter[Any] | None = None
        if config.mode == "opentelemetry":
            from backline.observe.tracing.spans import SpanWriter

            self._writer = self._spans = SpanWriter(config.spans)
        elif config.file is not None:
            from backline.observe.tracing.trace_file import TraceFile

            self._writer = TraceFile(config.file)
        #: Told of every request, whatever is traced, and the two of them for what both are to know.
        self._log: TraceWriter[Any] | None = None
        self._both: TraceWriter[Any] | None = None
        engine.trace_control = self
        self._follow()

    def _follow(self) -> None:
        traces = self._writer is not None and self._table.any_on
        self._engine.tracer = self if traces or self._log is not None else None

    def tell(self, log: TraceWriter[Any] | None) -> None:
        """From now on `log` hears of every request, also of those that are not traced; None: nobody does."""
        self._log = log
        self._both = None if self._writer is None or log is None else TraceWriterPair(self._writer, log)
        self._follow()

    def arrived(
        self, protocol: TraceProtocol, model: str, headers: Mapping[bytes, bytes], began_ns: int
    ) -> Exchange[Any] | None:
        """See Tracer. One that belongs to a sampled trace of the client's is traced, whatever the rate."""
        setting = self._table.of(model)
        parent = (
            self._spans.read_parent(headers)
            if self._spans is not None and setting.on and b"traceparent" in headers
            else None
        )
        traced = self._writer is not None and setting.sample(forced=parent is not None)
        writer = (self._both or self._writer) if traced else self._log
        return (
            None
            if writer is None
            else Exchange(writer, self._engine, setting, protocol, model, began_ns, parent)
        )

    def settings(self, model: str) -> Mapping[str, SettingValue]:
        """See TraceControl."""
        self._check(model)
        told = self._table.of(model).told()
        config = self._config
        if config.mode == "triton":
            return {**told, "trace_file": str(config.file or ""), "trace_mode": config.mode}
        del told["log_frequency"]
        spans = config.spans
        return {
            **told,
            "trace_mode": config.mode,
            "url": spans.url or DEFAULT_URL,
            "resource": [f"{key}={value}" for key, value in spans.resource],
            "bsp_max_queue_size": str(spans.max_queue_size or 2048),
            "bsp_schedule_delay": str(spans.schedule_delay_ms or 5000),
            "bsp_max_export_batch_size": str(spans.max_export_batch_size or 512),
        }

    def update(self, model: str, changes: Mapping[str, SettingValue | None]) -> None:
        """See TraceControl."""
        self._check(model)
        self._table.update(model, changes, has_file=self._config.file is not None)
        if self._writer is not None:
            self._writer.flush()
        self._follow()

    def _check(self, model: str) -> None:
        """In Triton's words."""
        if not model:
            return
        try:
            self._engine.find_ready(model)
        except BacklineError:
            raise InvalidArgument(f"Request for unknown model : {model[:256]}") from None

    async def close(self) -> None:
        """Traces no more, and writes what there is."""
        self._engine.tracer = None
        if self._writer is not None:
            await self._writer.close()
