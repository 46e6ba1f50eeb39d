"""A receiver of OTLP/HTTP spans, standing in for the OpenTelemetry collector."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Span:
    """A span as exported: ids in hex, times in Unix nanoseconds, `error` empty on success."""

    name: str
    kind: int
    trace_id: str
    id: str
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, str | int | bool]
    events: list[str]
    links: list[str]
    error: str
    resource: dict[str, str]
    children: list[Span] = field(default_factory=list)

    def tree(self) -> dict[str, object]:
        """The names of this span and its descendants, children in order of their start."""
        return {self.name: [child.tree() if child.children else child.name for child in self.children]}

    def below(self, *names: str) -> Span:
        """The only descendant on this path of names."""
        found = self
        for name in names:
            (found,) = (child for child in found.children if child.name == name)
        return found


class Receiver:
    """Collects the spans exported to `url`."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        self._spans: list[Span] = []
        self._changed = threading.Condition()

    def take(self, body: bytes) -> None:
        with self._changed:
            self._spans += _read(body)
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[Span], bool], timeout: float = 20.0) -> Span:
        """The first root span that satisfies `wanted`, once its children have arrived. Raises TimeoutError.

        A span is a root if its parent is not among the spans received.
        """
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                for root in _roots(self._spans):
                    if wanted(root):
                        return root
                if not self._changed.wait(end - time.monotonic()):
                    raise TimeoutError(f"no such span among {[root.tree() for root in _roots(self._spans)]}")

    @property
    def spans(self) -> list[Span]:
        with self._changed:
            return list(self._spans)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that runs until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Receiver(server)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()


def _roots(spans: list[Span]) -> list[Span]:
    """Complete traces: a span is exported when it ends, hence after its children."""
    by_id = {span.id: span for span in spans}
    for span in spans:
        span.children.clear()
    roots = []
    for span in sorted(spans, key=lambda span: (span.began, -span.ended)):
        parent = by_id.get(span.parent_id)
        (roots if parent is None else parent.children).append(span)
    return roots


def _read(body: bytes) -> list[Span]:
    spans = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for sent in scope.spans:
                attributes = {
                    one.key: getattr(one.value, one.value.WhichOneof("value")) for one in sent.attributes
                }
                spans.append(
                    Span(
                        sent.name,
                        sent.kind,
                        sent.trace_id.hex(),
                        sent.span_id.hex(),
                        sent.parent_span_id.hex(),
                        sent.start_time_unix_nano,
                        sent.end_time_unix_nano,
                        attributes,
                        [event.name for event in sent.events],
                        [link.span_id.hex() for link in sent.links],
                        sent.status.message if sent.status.code == 2 else "",
                        about,
                    )
                )
    return spans
