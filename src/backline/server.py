"""The composition: an engine filled from repositories, alone (`Embedded`) or behind sockets (`Server`)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backline.dialects.application import build_application
from backline.engine.engine import Engine
from backline.lifecycle.lifecycle import Lifecycle, LoadEvent
from backline.observe.metrics import Metrics
from backline.wire.connection import Wire
from backline.wire.heap import Heap
from backline.wire.limits import Limits
from backline.wire.listener import Listeners
from backline.wire.tls import TlsFiles

#: How long a thread may hold the interpreter while another waits, in seconds: with Python's default of 5 ms the event loop waits for worker
#: threads (docs/decisions/switch-interval.md).
SWITCH_INTERVAL = 0.0002


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server is told. A port of None is not opened, 0 takes any that is free; all ports answer every protocol."""

    repositories: tuple[Path, ...]
    host: str = "127.0.0.1"
    http_port: int | None = 8000
    grpc_port: int | None = 8001
    metrics_port: int | None = 8002
    unix_socket: Path | None = None
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)
    #: Models that are loaded at the same time.
    load_threads: int = 4
    #: The HTTP status of a health question whose answer is no: 503, or 400 as Triton's.
    not_ready_status: int = 503


class Embedded:
    """The engine inside a program: the models of the repositories, without sockets. Lives on the running event loop."""

    def __init__(self, repositories: Sequence[Path], *, load_threads: int = 4) -> None:
        self.engine = Engine()
        self._lifecycle = Lifecycle(self.engine, repositories, load_threads=load_threads)

    async def start(self, on_event: Callable[[LoadEvent], None] | None = None) -> None:
        """Loads all models. A model that fails is UNAVAILABLE and says why. Raises BacklineError for a repository that cannot be read."""
        await self._lifecycle.load_all(on_event)

    async def stop(self) -> None:
        """Finishes what runs, refuses what waits, and gives the memory back."""
        self.engine.stopping()
        await self._lifecycle.close()


class Server:
    """An engine behind its listeners."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._embedded = Embedded(options.repositories, load_threads=options.load_threads)
        self._listeners: Listeners | None = None
        self._heap: Heap | None = None
        #: What each open address is for: ("HTTP", "http://127.0.0.1:8000").
        self.urls: list[tuple[str, str]] = []

    @property
    def engine(self) -> Engine:
        return self._embedded.engine

    async def start(self, on_event: Callable[[LoadEvent], None] | None = None) -> None:
        """Opens the listeners, then loads all models; until they are loaded the server is live but not ready.

        Raises OSError when an address cannot be opened, TlsFileError for a TLS file and BacklineError for a repository that cannot be read.
        """
        sys.setswitchinterval(SWITCH_INTERVAL)
        options = self.options
        metrics: Metrics | None = None

        def render_metrics() -> tuple[bytes, bytes]:
            nonlocal metrics
            if metrics is None:
                metrics = Metrics(self.engine)
            return metrics.render()

        application = build_application(self.engine, render_metrics, not_ready_status=options.not_ready_status)
        wire = Wire(application, options.limits, asyncio.get_running_loop())
        self._listeners = Listeners(wire, options.tls)
        self._heap = Heap(wire)
        await self._open(self._listeners)
        await self._embedded.start(on_event)

    async def _open(self, listeners: Listeners) -> None:
        options = self.options
        scheme = "https" if listeners.secure else "http"
        for label, port in (("HTTP", options.http_port), ("gRPC", options.grpc_port), ("metrics", options.metrics_port)):
            if port is not None:
                opened = await listeners.open_tcp(options.host, port)
                path = "/metrics" if label == "metrics" else ""
                host = f"[{options.host}]" if ":" in options.host else options.host
                self.urls.append(
                    (
                        label,
                        f"{'grpcs' if listeners.secure else 'grpc'}://{host}:{opened}"
                        if label == "gRPC"
                        else f"{scheme}://{host}:{opened}{path}",
                    )
                )
        if options.unix_socket is not None:
            await listeners.open_unix(options.unix_socket)
            self.urls.append(("Unix socket", f"unix:{options.unix_socket}"))

    async def stop(self) -> None:
        """Takes no new request, finishes those in flight (at most the drain timeout), closes all connections and unloads the models."""
        self.engine.stopping()
        if self._heap is not None:
            self._heap.close()
        if self._listeners is not None:
            await self._listeners.close(self.options.limits.drain_timeout)
        await self._embedded.stop()
