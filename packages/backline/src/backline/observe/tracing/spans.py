"""Records traces as OpenTelemetry spans. OpenTelemetry's SDK, which the extra `backline[otel]` installs,
creates and sends the spans.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any

from backline.observe.tracing.settings import SpanOptions
from backline.observe.tracing.trace import RECEIVED, Exchange, Failure, RequestTrace, Run, numbered
from backline_client.values.errors import Unsupported
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

#: The maximum time, in seconds, for sending the remaining spans when the server stops.
_FAREWELL = 2.0


class KeptSpan:
    """The span of an exchange or request. A time from time.monotonic_ns() plus `offset_ns` is the wall-clock
    time in nanoseconds since the epoch.
    """

    __slots__ = ("id", "offset_ns", "span")

    def __init__(self, span: Span, offset_ns: int, id: int = 0) -> None:
        self.span = span
        #: A serial number, used for the attributes `triton.trace_id` and `triton.trace_parent_id`.
        self.id = id
        self.offset_ns = offset_ns


class SpanWriter:
    """A TraceWriter that converts traces to spans.

    A client's request becomes a span `InferRequest`. This span has a child for each request to a model; the
    child is named after the model. Such a child in turn has the children `queue` and `compute`, and `compute`
    has the children `input`, `infer` and `output`. Spans that cannot be sent in time are lost.
    """

    def __init__(self, options: SpanOptions) -> None:
        """Raises Unsupported if the SDK is not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise Unsupported(
                f"trace mode opentelemetry needs OpenTelemetry's SDK ({error}): pip install 'backline[otel]'"
            ) from None
        resource = Resource.create(dict(options.resource))
        # The SDK uses a name that starts like this if neither an option nor the environment names the
        # service.
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "backline"}))
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(options.url),
                max_queue_size=options.max_queue_size,
                schedule_delay_millis=options.schedule_delay_ms,
                max_export_batch_size=options.max_export_batch_size,
            )
        )
        # The SDK would log each span that does not fit into the queue, and logging costs more time than the
        # span itself. Failures to send are still reported, by another logger.
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)
        self._tracer = self._provider.get_tracer("backline", __version__)
        self._trace = trace
        self._ids = count(1)
        self._propagator = TraceContextTextMapPropagator()

    def read_parent(self, headers: Mapping[bytes, bytes]) -> Context | None:
        """Returns the client's trace context from the headers `traceparent` and `tracestate`; None if there
        is no context, or if it is not sampled.
        """
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in self._propagator.fields
            if name.encode() in headers
        }
        context = self._propagator.extract(carrier)
        standing = self._trace.get_current_span(context).get_span_context()
        return context if standing.is_valid and standing.trace_flags.sampled else None

    def arrived(self, exchange: Exchange[KeptSpan]) -> KeptSpan:
        offset = time_ns() - monotonic_ns()
        parent: Any = exchange.parent
        span = self._tracer.start_span(
            "InferRequest",
            parent,
            kind=self._trace.SpanKind.SERVER,
            attributes={"network.protocol.name": exchange.protocol.lower()},
            start_time=exchange.began_ns + offset,
        )
        return KeptSpan(span, offset, next(self._ids))

    def began(self, trace: RequestTrace[KeptSpan], request: InferRequest) -> KeptSpan:
        parent = trace.parent.kept if trace.parent is not None else None
        above = parent or trace.exchange.kept
        id = next(self._ids) if parent is not None else above.id
        attributes: dict[str, str | int] = {
            "triton.model_name": trace.model_name,
            "triton.model_version": numbered(trace.model_version),
            "triton.trace_id": id,
            "triton.trace_parent_id": parent.id if parent is not None else 0,
        }
        if trace.id:
            attributes["triton.request_id"] = trace.id
        span = self._tracer.start_span(
            trace.model_name,
            self._trace.set_span_in_context(above.span),
            attributes=attributes,
            links=[self._trace.Link(link.kept.span.get_span_context()) for link in trace.links],
            start_time=trace.began_ns + above.offset_ns,
        )
        return KeptSpan(span, above.offset_ns, id)

    def context(self, kept: KeptSpan) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(kept.span))
        return json.dumps(carrier)

    def responded(self, request: RequestTrace[KeptSpan], response: InferResponse) -> None:
        """Adds nothing, because the span gets the number of responses when the request ends."""

    def ended(self, request: RequestTrace[KeptSpan]) -> None:
        kept = request.kept
        events = [("REQUEST_START", request.began_ns), ("QUEUE_START", request.began_ns)]
        if request.responses:
            kept.span.set_attribute("backline.response_count", request.responses)
            events.append(("FIRST_RESPONSE", request.first_response_ns))
        kept.span.set_attribute("backline.batch_size", request.batch_size)
        self._add_queue(request)
        for run in request.runs:
            self._add_run(kept, run)
        self._end(kept, [*events, ("REQUEST_END", request.ended_ns)], request.ended_ns, request.error)

    def answered(self, exchange: Exchange[KeptSpan]) -> None:
        received, read = RECEIVED[exchange.protocol]
        events = [
            (received, exchange.began_ns),
            (read, exchange.read_ns),
            ("INFER_RESPONSE_COMPLETE", exchange.response_ns),
            (f"{exchange.protocol}_SEND_START", exchange.send_ns),
            (f"{exchange.protocol}_SEND_END", exchange.sent_ns),
        ]
        self._end(exchange.kept, events, exchange.sent_ns, exchange.error)

    def _add_queue(self, request: RequestTrace[KeptSpan]) -> None:
        """Adds a span for the time in the queue, or records a cache hit. Adds nothing for requests to
        ensembles and refused requests.
        """
        if request.runs:
            self._add(request.kept, "queue", request.began_ns, request.runs[0].started_ns)
        elif request.error is None and not request.asked_others:
            request.kept.span.set_attribute("backline.cache_hit", True)
        elif request.queued and request.error is not None:
            self._add(request.kept, "queue", request.began_ns, request.ended_ns)

    def _add_run(self, kept: KeptSpan, run: Run) -> None:
        moments = (run.started_ns, run.gathered_ns, run.ran_ns, run.ended_ns)
        names = ("COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END")
        compute = KeptSpan(self._start(kept, "compute", run.started_ns), kept.offset_ns)
        compute.span.set_attribute("backline.run_batch_size", run.batch_size)
        for place, name in enumerate(("input", "infer", "output")):
            self._add(compute, name, moments[place], moments[place + 1])
        self._end(compute, list(zip(names, moments, strict=True)), run.ended_ns, None)

    def _start(self, above: KeptSpan, name: str, began_ns: int) -> Span:
        return self._tracer.start_span(
            name, self._trace.set_span_in_context(above.span), start_time=began_ns + above.offset_ns
        )

    def _add(self, above: KeptSpan, name: str, began_ns: int, ended_ns: int) -> None:
        self._start(above, name, began_ns).end(ended_ns + above.offset_ns)

    def _end(
        self, kept: KeptSpan, events: Sequence[tuple[str, int]], ended_ns: int, error: Failure | None
    ) -> None:
        span = kept.span
        for name, ns in events:
            if ns:
                span.add_event(name, timestamp=ns + kept.offset_ns)
        if error is not None:
            span.set_attribute("error.type", error.kind)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error.message))
        span.end(ended_ns + kept.offset_ns)

    def flush(self) -> None:
        """Does nothing: the SDK sends spans in batches and at intervals."""

    async def close(self) -> None:
        """Sends the remaining spans. Returns after at most _FAREWELL seconds, so that a receiver that hangs
        does not delay the exit for longer.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

        # The thread is a daemon, so that it does not block the exit of the program.
        threading.Thread(target=shut_down, name="spans", daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _FAREWELL)
