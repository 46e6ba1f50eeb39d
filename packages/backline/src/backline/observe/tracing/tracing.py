"""Traces the server's requests: decides which requests are traced, and where the traces are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from backline.engine.engine import Engine
from backline.engine.tracing import SettingValue, TraceProtocol
from backline.observe.tracing.settings import DEFAULT_URL, SettingTable, TraceConfig
from backline.observe.tracing.trace import Exchange, Kept, RequestTrace, TraceWriter
from backline.observe.tracing.watch import TraceWatch
from backline_client.values.errors import BacklineError, InvalidArgument

if TYPE_CHECKING:
    from backline.observe.tracing.spans import SpanWriter


class TraceWriterPair(Generic[Kept]):
    """Combines two TraceWriters. The second one, such as the request log, is called only at the end of
    requests and exchanges.
    """

    def __init__(self, writer: TraceWriter[Kept], second: TraceWriter[Any]) -> None:
        self._writer = writer
        self._second = second
        self.arrived = writer.arrived
        self.began = writer.began
        self.context = writer.context
        self.responded = writer.responded
        self.flush = writer.flush
        self.close = writer.close

    def ended(self, request: RequestTrace[Kept]) -> None:
        self._writer.ended(request)
        self._second.ended(request)

    def answered(self, exchange: Exchange[Kept]) -> None:
        self._writer.answered(exchange)
        self._second.answered(exchange)


class Tracing:
    """Traces the requests to an engine according to the settings; implements Tracer and TraceControl.

    All methods must be called on the event loop. `Engine.tracer` refers to this object only while requests
    may have to be traced or logged.
    """

    def __init__(self, engine: Engine, config: TraceConfig) -> None:
        """Raises Unsupported if OpenTelemetry is needed but not installed, and InvalidArgument if the trace
        file cannot be written.
        """
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
        #: Traces requests for people who watch them in the console or with `backline watch`.
        self.watched = TraceWatch()
        #: The request log, which gets all requests, whether they are traced or not.
        self._log: TraceWriter[Any] | None = None
        #: The trace writer combined with the request log, for traced requests.
        self._both: TraceWriter[Any] | None = None
        engine.trace_control = self
        self._follow()

    def _follow(self) -> None:
        traces = self._writer is not None and self._table.any_on
        wanted = traces or self._log is not None or bool(self.watched.watchers)
        self._engine.tracer = self if wanted else None

    def recent(self) -> Sequence[Mapping[str, Any]]:
        """Returns the latest traces made for watchers; see TraceControl."""
        return tuple(self.watched.recent)

    def watch(self, watcher: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Calls `watcher` with the trace of each request that ends; see TraceControl."""
        self.watched.watchers.append(watcher)
        self._follow()

        def stop() -> None:
            self.watched.watchers.remove(watcher)
            self._follow()

        return stop

    def log_requests(self, log: TraceWriter[Any] | None) -> None:
        """Reports every request to `log` from now on, whether the request is traced or not. If `log` is None,
        ends the reporting.
        """
        self._log = log
        self._both = None if self._writer is None or log is None else TraceWriterPair(self._writer, log)
        self._follow()

    def arrived(
        self, protocol: TraceProtocol, model: str, headers: Mapping[bytes, bytes], began_ns: int
    ) -> Exchange[Any] | None:
        """Traces a request if the client asks for a trace, the request is sampled, or requests are logged or
        watched; see Tracer.
        """
        setting = self._table.of(model)
        parent = (
            self._spans.read_parent(headers)
            if self._spans is not None and setting.on and b"traceparent" in headers
            else None
        )
        traced = self._writer is not None and setting.sample(forced=parent is not None)
        writer = (self._both or self._writer) if traced else self._log
        if self.watched.watchers and self.watched.admits(began_ns, headers.get(b"x-request-id", b"")):
            writer = self.watched if writer is None else TraceWriterPair(writer, self.watched)
        if writer is None:
            return None
        return Exchange(writer, self._engine, setting, protocol, model, began_ns, parent)

    def settings(self, model: str) -> Mapping[str, SettingValue]:
        """Returns the settings of a model, or the global settings; see TraceControl."""
        self._check(model)
        shown = self._table.of(model).shown()
        config = self._config
        if config.mode == "triton":
            return {**shown, "trace_file": str(config.file or ""), "trace_mode": config.mode}
        del shown["log_frequency"]
        spans = config.spans
        return {
            **shown,
            "trace_mode": config.mode,
            "url": spans.url or DEFAULT_URL,
            "resource": [f"{key}={value}" for key, value in spans.resource],
            "bsp_max_queue_size": str(spans.max_queue_size or 2048),
            "bsp_schedule_delay": str(spans.schedule_delay_ms or 5000),
            "bsp_max_export_batch_size": str(spans.max_export_batch_size or 512),
        }

    def update(self, model: str, changes: Mapping[str, SettingValue | None]) -> None:
        """Changes the settings of a model, or the global settings; see TraceControl."""
        self._check(model)
        self._table.update(model, changes, has_file=self._config.file is not None)
        if self._writer is not None:
            self._writer.flush()
        self._follow()

    def _check(self, model: str) -> None:
        """Raises InvalidArgument, with Triton's message, for an unknown model."""
        if not model:
            return
        try:
            self._engine.find_ready(model)
        except BacklineError:
            raise InvalidArgument(f"Request for unknown model : {model[:256]}") from None

    async def close(self) -> None:
        """Stops tracing and writes the remaining traces."""
        self._engine.tracer = None
        if self._writer is not None:
            await self._writer.close()
