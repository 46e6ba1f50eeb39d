"""Assembles a server: an engine that serves the models of repositories, and the sockets that clients use."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from backline.access.access import UNCONFIGURED, Access
from backline.access.browsers import BrowserPolicy, is_loopback
from backline.access.keys import environment_has_keys
from backline.access.restricted import GRPC_PREFIX, RestrictedApis, parse_restrictions
from backline.dialects.application import build_application
from backline.dialects.forwarding import Forwarding
from backline.dialects.plugin import check_dialects
from backline.embedded.embedded import Embedded
from backline.engine.engine import Engine
from backline.engine.shared_memory import SharedMemory
from backline.lifecycle.journal import LoadEvent
from backline.lifecycle.options import LifecycleOptions
from backline.lifecycle.records import warn_of_folder
from backline.observe.log.requests import RequestLog
from backline.observe.log.server_log import ServerLog
from backline.observe.metrics import Metrics
from backline.observe.metrics_config import MetricsConfig
from backline.observe.recording import Recorder
from backline.observe.scaling import STEADY, ScalingPolicy, ScalingSignal
from backline.observe.tracing.settings import TraceConfig
from backline.observe.tracing.tracing import Tracing
from backline.system.cores import SpareCore, usable_cores
from backline.system.garbage import collected_rarely
from backline.system.memory import share_arena
from backline.system.service_manager import PassedSocket, passed_sockets
from backline.wire.application import Application
from backline.wire.connection import Wire
from backline.wire.heap import Heap
from backline.wire.limits import Limits
from backline.wire.listener import Listeners
from backline.wire.tls import TlsFiles
from backline_client.system.user_folders import user_cache
from backline_client.values.control import Attempt
from backline_client.values.private_places import keep_private

if TYPE_CHECKING:
    from backline.access.auth_file import AuthFileWatch

log = logging.getLogger("backline.server")

#: The names of the ports in the log. They are the same as in Triton, because scripts wait for lines with
#: these names.
_SERVICES = {"HTTP": "HTTPService", "gRPC": "GRPCInferenceService", "metrics": "Metrics Service"}
#: Seconds for which a thread may hold the GIL while another thread waits for the GIL. With Python's default
#: of 5 ms, the event loop would often wait for threads that compute (docs/decisions/switch-interval.md).
SWITCH_INTERVAL = 0.0002
#: Seconds after the start at which SWITCH_INTERVAL takes effect if models are still being loaded. Until then,
#: few requests arrive, and threads that load models lose less time to each other with Python's default.
START_SECONDS = 5.0
#: Maximum time, in seconds, to look up the machine's fully qualified name when the server starts.
FQDN_TIMEOUT = 2.0


class OpenPort(Struct, frozen=True):
    """A TCP port to open: its label ("HTTP", "gRPC" or "metrics"), address and number (0: any free port)."""

    label: str
    host: str
    port: int
    #: Whether other servers may listen on the same port.
    reuse: bool = False

    @property
    def url_host(self) -> str:
        """The address in the form that URLs use."""
        return f"[{self.host}]" if ":" in self.host else self.host


class ServerOptions(Struct, frozen=True):
    """The options of a server: what to serve, where to listen, and what to allow.

    `repositories` are paths or URLs. A port of None is not opened; 0 means any free port. Every port speaks
    all protocols, except a metrics port with `metrics_plain`.
    """

    repositories: tuple[str | Path, ...]
    lifecycle: LifecycleOptions = field(default_factory=LifecycleOptions)
    #: If this is not empty, a model is configured by the file configs/<config_name>.pbtxt (or .toml) in its
    #: folder; without such a file, as usual by its config.pbtxt or model.toml.
    config_name: str = ""
    #: The name of the model, if the only repository is a single model. If empty, the name comes from the
    #: path.
    model_name: str = ""
    #: Whether the server fails to start if any model fails to load.
    exit_on_error: bool = False
    #: The name of the server in its metadata.
    name: str = "backline"
    #: The address on which the ports listen, except ports for which a field below sets another address.
    host: str = "127.0.0.1"
    grpc_host: str = ""
    metrics_host: str = ""
    http_port: int | None = 8000
    grpc_port: int | None = 8001
    metrics_port: int | None = 8002
    #: Whether other servers may listen on the same port; the kernel then distributes the connections.
    reuse_http_port: bool = False
    reuse_grpc_port: bool = False
    reuse_metrics_port: bool = False
    unix_socket: Path | None = None
    tls: TlsFiles | None = None
    #: Whether the metrics port works without TLS. If so, this port serves only metrics and health checks.
    metrics_plain: bool = False
    #: Whether the gRPC port is the only one that uses TLS.
    tls_grpc_only: bool = False
    limits: Limits = field(default_factory=Limits)
    #: The maximum time, in microseconds, for which the event loop polls for input before it sleeps; 0
    #: disables polling.
    busy_poll_usecs: int = 400
    #: Origins of web pages that may use the server, such as "https://console.example.org".
    cors_origins: tuple[str, ...] = ()
    #: A file of keys and their permissions; if None, only keys in environment variables are accepted.
    auth: Path | None = None
    #: Whether, if no key is configured, every caller on every address may do everything.
    insecure_open: bool = False
    #: Additional host names of the server; "*.example.org" means any name below example.org, and "*" admits
    #: any name in requests from programs, but not in requests from browsers.
    allowed_hosts: tuple[str, ...] = ()
    #: The HTTP status of a failed health check: 503, or Triton's 400.
    not_ready_status: int = 503
    #: Whether clients may exchange inputs and outputs through this machine's shared memory.
    allow_client_shm: bool = False
    #: The number of requests in flight at which the server counts as fully used; None means two per core.
    target_in_flight: float | None = None
    #: The latency metrics to provide.
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    #: Whether to serve the console for browsers.
    console: bool = True
    #: Origins of pages that may show the console in a frame, written as in a content security policy. By
    #: default, no page may.
    frame_ancestors: tuple[str, ...] = ()
    #: The names of the dialects to serve besides the Open Inference Protocol; None means all.
    dialects: tuple[str, ...] | None = None
    #: The model of requests that name none; "" means the only model.
    default_model: str = ""
    #: Groups of routes that accept only requests with a certain header field, in the form of Triton's
    #: options: "health,metadata:key=value".
    http_restricted_apis: tuple[str, ...] = ()
    grpc_restricted_protocols: tuple[str, ...] = ()
    #: Header fields whose names match these regular expressions are passed to models as parameters. If an
    #: expression is empty, no fields are passed.
    http_header_forward_pattern: str = ""
    grpc_header_forward_pattern: str = ""
    #: The initial trace settings.
    trace: TraceConfig = field(default_factory=TraceConfig)

    @property
    def ports(self) -> tuple[OpenPort, ...]:
        """The TCP ports to open."""
        given = (
            OpenPort("HTTP", self.host, self.http_port or 0, self.reuse_http_port),
            OpenPort("gRPC", self.grpc_host or self.host, self.grpc_port or 0, self.reuse_grpc_port),
            OpenPort(
                "metrics", self.metrics_host or self.host, self.metrics_port or 0, self.reuse_metrics_port
            ),
        )
        numbers = (self.http_port, self.grpc_port, self.metrics_port)
        return tuple(one for one, number in zip(given, numbers, strict=True) if number is not None)

    @property
    def only_certified(self) -> bool:
        """Whether all TCP ports, except a metrics port without TLS, admit only clients with a certificate."""
        return self.tls is not None and self.tls.only_certified and not self.tls_grpc_only

    @property
    def reachable(self) -> tuple[str, ...]:
        """Those addresses of `ports` that other machines can reach."""
        return tuple(dict.fromkeys(one.host for one in self.ports if not is_loopback(one.host)))


def _access(options: ServerOptions) -> Access | None:
    """Returns the Access that limits what callers may do; None if every caller may do everything.

    If there is neither a file of keys nor a key in the environment, every caller may do everything if
    `insecure_open` is set, if a client certificate is required, or if only this machine can reach the ports;
    otherwise, nobody may change anything. Raises InvalidArgument if the file or a key is not valid.
    """
    if options.auth is not None or environment_has_keys():
        # Imported late, because defining the classes for the tables of the file takes a while.
        from backline.access.auth_file import AuthDocument, make_policy, read_auth_file

        if options.auth is None:
            return Access(make_policy(AuthDocument()))
        return Access(make_policy(read_auth_file(options.auth), folder=options.auth.parent))
    if options.insecure_open or options.only_certified or not options.reachable:
        return None
    return Access(UNCONFIGURED)


def _scaling(options: ServerOptions) -> ScalingPolicy | None:
    return None if options.target_in_flight is None else ScalingPolicy(options.target_in_flight)


def _restricted(options: ServerOptions) -> RestrictedApis | None:
    """Returns the restricted APIs; None if there are none. Raises InvalidArgument if an option is invalid."""
    http = parse_restrictions("--http-restricted-api", options.http_restricted_apis)
    grpc = parse_restrictions("--grpc-restricted-protocol", options.grpc_restricted_protocols, GRPC_PREFIX)
    return RestrictedApis(http, grpc) if http or grpc else None


async def _browser_policy(options: ServerOptions) -> BrowserPolicy:
    """Returns the policy for requests from web pages. Such requests must be addressed to one of the host
    names of this server.

    The host names of the server are `allowed_hosts`, the hosts that it listens on, the machine's name and,
    unless the server listens only on the loopback interface, the machine's fully qualified name. Raises
    InvalidArgument for an invalid host name or origin.
    """
    addresses = {options.host, *(one.host for one in options.ports)}
    names = (addresses | {socket.gethostname()}) - {""}
    if not all(map(is_loopback, addresses)):
        # The lookup may query a slow DNS server, which must not delay the start for long.
        asked = asyncio.get_running_loop().run_in_executor(None, socket.getfqdn)
        with suppress(TimeoutError):
            names.add(await asyncio.wait_for(asked, FQDN_TIMEOUT))
    own = frozenset(name.lower().removesuffix(".") for name in names)
    policy = BrowserPolicy.of(hosts=options.allowed_hosts, origins=options.cors_origins)
    return replace(policy, hosts=replace(policy.hosts, names=policy.hosts.names | own))


@contextmanager
def switching_often_after(seconds: float) -> Iterator[None]:
    """Sets Python's switch interval to SWITCH_INTERVAL at the end of the `with` block, or after `seconds` if
    the block takes longer.
    """
    timer = asyncio.get_running_loop().call_later(seconds, sys.setswitchinterval, SWITCH_INTERVAL)
    try:
        yield
    finally:
        timer.cancel()
        sys.setswitchinterval(SWITCH_INTERVAL)


class PortNotOpened(OSError):
    """Raised when a port cannot be opened."""

    def __init__(self, port: OpenPort, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.port = port


class Server:
    """A model server: an engine, and the listeners through which clients reach it."""

    def __init__(self, options: ServerOptions, log: ServerLog | None = None) -> None:
        """Creates a server. If `log`, the program's log, is given, clients may change the settings of the
        log.
        """
        self.options = options
        lifecycle = options.lifecycle
        if options.auth is not None or environment_has_keys():
            lifecycle = replace(lifecycle, fair_queues=True)
        if lifecycle.default_queue == "requests":
            lifecycle = replace(lifecycle, default_queue="seconds")
        self._embedded = Embedded(
            options.repositories,
            lifecycle,
            config_name=options.config_name,
            model_name=options.model_name,
            exit_on_error=options.exit_on_error,
        )
        self.engine.server_name = options.name
        self._keep_places_private()
        self._log = self.engine.log_control = log
        if options.allow_client_shm:
            self.engine.shared_memory = SharedMemory(
                options.limits.max_body_size, options.limits.max_buffered_bytes
            )
        self._tracing: Tracing | None = None
        self._metrics: Metrics | None = None
        self._passed: list[PassedSocket] = []
        self._listeners: Listeners | None = None
        self._application: Application | None = None
        #: The open TCP ports, each with the number of the port that was opened (the options may ask for any
        #: free port).
        self._opened: list[tuple[OpenPort, int]] = []
        self._heap: Heap | None = None
        self._access: Access | None = None
        self._auth_watch: AuthFileWatch | None = None
        #: The open listeners, with their URLs, such as ("HTTP", "http://127.0.0.1:8000").
        self.urls: list[tuple[str, str]] = []

    @property
    def engine(self) -> Engine:
        return self._embedded.engine

    def signal(self) -> ScalingSignal:
        """Returns the current signal for autoscalers; STEADY before the server has started."""
        return STEADY if self._metrics is None else self._metrics.signal()

    def _keep_places_private(self) -> None:
        options = self.options
        for location in options.repositories:
            if "://" not in str(location):
                keep_private(Path(location), Path(location).name)
        keep_private(self._embedded.state_folder, "state folder")
        keep_private(options.lifecycle.cache_folder or user_cache(), "cache folder")
        keep_private(Path(sys.prefix), "python")
        with suppress(RuntimeError):  # raised if the user has no home folder
            keep_private(Path.home(), "~")

    async def start(self, on_event: Callable[[LoadEvent], None] | None = None) -> None:
        """Opens the listeners, then loads the models that the options select. While they are being loaded,
        the server is live but not ready.

        Raises OSError if an address cannot be opened, TlsFileError for an invalid TLS file, and BacklineError
        for other invalid options, if a repository cannot be read, if traces cannot be written or, with the
        option `exit_on_error`, if a model fails to load.
        """
        share_arena()
        self._take_passed_sockets()
        options = self.options
        if options.dialects is not None:
            check_dialects(options.dialects)
        access = self._access = _access(options)
        if access is not None and options.auth is not None:
            from backline.access.auth_file import AuthFileWatch

            self._auth_watch = AuthFileWatch(
                options.auth, access, asyncio.get_running_loop(), self._note_reload
            )
            if options.lifecycle.mode == "none":  # in the other modes, the lifecycle warns
                await asyncio.to_thread(warn_of_folder, self._embedded.state_folder)
        tracing = self._tracing = Tracing(self.engine, options.trace)
        if self._log is not None:
            requests = RequestLog()
            self._log.watch(
                lambda settings: tracing.log_requests(requests if settings.verbose_level else None)
            )
        recorder = Recorder(self.engine, self._embedded.state_folder)
        metrics = self._metrics = Metrics(self.engine, _scaling(options), options.metrics)
        application = self._application = build_application(
            self.engine,
            metrics.page,
            scaling=metrics.signal,
            recorder=recorder,
            not_ready_status=options.not_ready_status,
            browsers=await _browser_policy(options),
            access=access,
            console=options.console,
            frame_ancestors=options.frame_ancestors,
            dialects=options.dialects,
            default_model=options.default_model,
            restricted=_restricted(options),
            forwarding=Forwarding.of(
                options.http_header_forward_pattern, options.grpc_header_forward_pattern
            ),
            state_folder=self._embedded.state_folder,
        )
        poll = self._embedded.poll
        if usable_cores() > 1:  # otherwise the work itself needs the core, or the container's quota of one
            poll.allow(options.busy_poll_usecs / 1e6, SpareCore())
        wire = Wire(application, options.limits, asyncio.get_running_loop(), poll)
        self._listeners = Listeners(wire, options.tls)
        self._heap = Heap(wire)
        await self._open(self._listeners)
        with collected_rarely(), switching_often_after(START_SECONDS):
            await self._embedded.start(on_event)
        # The ports have been open for a while, but scripts take these lines as a sign that the server is
        # ready.
        for port, number in self._opened:
            log.info("Started %s at %s:%d", _SERVICES[port.label], port.url_host, number)

    def _note_reload(self, error: str) -> None:
        """Records a reload of the file of keys in the audit log. `error` says why it failed; empty if it
        succeeded.
        """
        if self.engine.control is not None:
            route = f"reload of '{self.options.auth}'"
            outcome: Literal["done", "failed"] = "failed" if error else "done"
            self.engine.control.note(Attempt(time.time(), outcome, route, detail=error))

    def _take_passed_sockets(self) -> None:
        """Takes the sockets that a service manager passes. Their addresses replace the addresses in the
        options.

        Invariant (security): this runs before `_access`, which allows callers more if only this machine can
        reach the addresses.
        """
        self._passed = passed_sockets()
        hosts = [one.host for one in self._passed if one.host]
        if hosts:
            widest = next((host for host in hosts if not is_loopback(host)), hosts[0])
            self.options = replace(self.options, host=widest, grpc_host="", metrics_host="")

    async def _open(self, listeners: Listeners) -> None:
        options = self.options
        for given in self._passed:
            metrics_only = options.metrics_plain and given.name == "metrics"
            plain = metrics_only or (options.tls_grpc_only and given.name != "grpc")
            url = await listeners.open_passed(given.listening, metrics_only=metrics_only, plain=plain)
            self.urls.append((given.name or "socket", url))
        if self._passed:  # the service manager has decided on the addresses
            return
        for one in options.ports:
            metrics_only = options.metrics_plain and one.label == "metrics"
            plain = metrics_only or (options.tls_grpc_only and one.label != "gRPC")
            try:
                opened = await listeners.open_tcp(
                    one.host, one.port, metrics_only=metrics_only, plain=plain, reuse=one.reuse
                )
            except OSError as error:
                raise PortNotOpened(one, error) from error
            scheme = ("grpc" if one.label == "gRPC" else "http") + (
                "s" if listeners.secure and not plain else ""
            )
            path = "/metrics" if one.label == "metrics" else ""
            self.urls.append((one.label, f"{scheme}://{one.url_host}:{opened}{path}"))
            self._opened.append((one, opened))
        if options.unix_socket is not None:
            await listeners.open_unix(options.unix_socket)
            self.urls.append(("Unix socket", f"unix:{options.unix_socket}"))

    @property
    def reloadable(self) -> bool:
        """Whether `reload` can change anything."""
        return self.options.tls is not None or self.options.auth is not None

    def reload(self) -> None:
        """Reads the certificates and the file of keys again. An invalid file changes nothing."""
        if self._listeners is not None:
            self._listeners.reload()
        if self._auth_watch is not None:
            self._auth_watch.reload()

    async def stop(self) -> None:
        """Refuses new requests, waits until the requests in flight have ended or the drain timeout has
        passed, closes all connections and unloads the models.
        """
        # This comes first, because requests that wait for a load would keep the listeners from closing.
        self._embedded.stopping()
        if self._heap is not None:
            self._heap.close()
        if self._auth_watch is not None:
            self._auth_watch.close()
        if self._access is not None:
            self._access.close()
        try:
            if self._listeners is not None:
                await self._listeners.close(self.options.limits.drain_timeout)
            await self._embedded.stop()
            if self._application is not None:
                await self._application.close()
        finally:  # the command line cancels `stop` if a model's run does not end
            if self._tracing is not None:
                await self._tracing.close()
