"""Checks a running server and its models through the server's API and metrics."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import backline
from backline.access.browsers import is_loopback
from backline.plugins.tools.doctor.files import SOON
from backline.plugins.tools.doctor.finding import Finding, error, note, ok, warning
from backline.system.cores import usable_cores
from backline_client.client.address import Address
from backline_client.client.aio import AsyncClient
from backline_client.client.errors import PermissionDenied
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex
from backline_client.values.errors import BacklineError

Answer = TypeVar("Answer")

#: The minimum number of requests at which rates and means are considered meaningful.
_ENOUGH = 20
_FAILED_SHARE = 0.01
_SLOW_LOAD = 30.0
_SKEW = 30.0
#: The queue time of a model is reported if it is more than this many times the compute time.
_LONG_QUEUE = 3.0
_LOAD_SECONDS = "nv_model_load_duration_secs"
_STUCK = "backline_stuck_runs"
#: A model version: the model's name and the version.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The facts that a server reports about itself and its models.

    If the server does not respond, `problem` says why, and no other facts are known. The same holds
    if the server refuses the caller, who has no key or lacks a scope; `refused` is then true. `statistics`
    and `configurations` contain only what the server provides and what the scopes of the caller's key permit.
    """

    url: str
    problem: str = ""
    refused: bool = False
    name: str = ""
    version: str = ""
    own_version: str = backline.__version__
    ready: bool = True
    index: tuple[ModelIndex, ...] = ()
    statistics: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    configurations: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    #: The duration of the last load of each version, in seconds.
    load_seconds: Mapping[Key, float] = field(default_factory=dict)
    #: The number of runs of each version that exceeded their time limit and have not ended.
    stuck: Mapping[Key, float] = field(default_factory=dict)
    #: The number of seconds by which the clock of the server is ahead of the clock of this machine; None if
    #: unknown.
    skew: float | None = None
    #: When the server's certificate expires (None if unknown), and the current time, in seconds since 1970.
    certificate_expires: float | None = None
    now: float = 0.0
    #: The scopes of callers without a key, if other machines can reach the address. Empty if the server does
    #: not list them.
    open_scopes: frozenset[str] = frozenset()
    #: The number of cores that the server can use; None if the server runs on another machine.
    cores: int | None = None


def answers(server: ServerFacts) -> Iterator[Finding]:
    if server.refused:
        yield error(
            f"{server.url} refuses to say what it serves: {server.problem}",
            "Nothing else about the server can be checked.",
            "Give this command a key with the scope read: set BACKLINE_KEY, or pass --api-key @FILE.",
        )
    elif server.problem:
        yield error(
            f"{server.url} does not answer: {server.problem}",
            "Nothing else about the server can be checked.",
            "Check that it runs, and that the address, the port and the certificate are right.",
        )
    else:
        yield ok(f"{server.url} answers: {server.name} {server.version}")


def server_version(server: ServerFacts) -> Iterator[Finding]:
    if server.name == "backline" and server.version != server.own_version:
        yield note(
            f"The server is Backline {server.version}, this program {server.own_version}",
            "Commands and clients may know options that the server does not, or vice versa.",
            "Install the same version on both sides.",
        )


def certificate_of_server(server: ServerFacts) -> Iterator[Finding]:
    if server.certificate_expires is None:
        return
    days = (server.certificate_expires - server.now) / 86_400
    if server.certificate_expires - server.now < SOON:
        yield warning(
            f"The server's certificate expires in {days:.0f} days",
            "Clients then refuse to connect.",
            "Renew it. The server picks up the new files without a restart.",
        )
    else:
        yield ok(f"The server's certificate is valid for {days:.0f} more days")


def clocks(server: ServerFacts) -> Iterator[Finding]:
    if server.skew is None:
        return
    if abs(server.skew) > _SKEW:
        yield warning(
            f"The server's clock is {abs(server.skew):.0f} s {'ahead of' if server.skew > 0 else 'behind'}"
            " this machine's",
            "Tokens and certificates may seem expired or not valid yet, and times in the traces of the two"
            " sides disagree.",
            "Set both clocks with NTP (timedatectl set-ntp true).",
        )
    else:
        yield ok("The server's clock agrees with this machine's")


#: For each scope, what a caller with the scope may do, and why a server should not allow everyone to do it.
_ALLOWED: Mapping[str, tuple[str, str]] = {
    "read": ("see its models", "Inputs, outputs and settings of all models are visible."),
    "infer": ("run its models", "Running models uses the machine's cores."),
    "manage": (
        "load models",
        "A model is code: anyone who may load a model can run programs as the server's user.",
    ),
    "admin": ("change its settings", "Recorded requests and the log are visible."),
}


def callers_without_key(server: ServerFacts) -> Iterator[Finding]:
    allowed = [_ALLOWED[scope] for scope in _ALLOWED if scope in server.open_scopes]
    if allowed:
        yield warning(
            f"Callers without a key can use {server.url}: they may {', '.join(may for may, _ in allowed)}",
            " ".join(("Requests to this address need no key.", *(effect for _, effect in allowed))),
            "Create keys ('backline keys create') and serve with --auth. In that file, the table [anonymous]"
            " lists what callers without a key may do.",
        )


def readiness(server: ServerFacts) -> Iterator[Finding]:
    failed = [entry for entry in server.index if entry.state == "UNAVAILABLE"]
    for entry in failed:
        yield error(
            f"{_version(entry.name, entry.version)} is not available: {entry.reason or 'no reason given'}",
            "Requests to it fail.",
            f"Correct what the reason names, then: backline models load {entry.name}",
        )
    loading = [entry for entry in server.index if entry.state == "LOADING"]
    for entry in loading:
        seconds = "" if entry.progress is None else f" for {entry.progress.seconds:.0f} s"
        yield note(
            f"{_version(entry.name, entry.version)} is loading{seconds}",
            "Requests to it wait or fail until it has loaded.",
            f"Watch it: backline models load {entry.name}",
        )
    if not failed and not loading:
        if server.ready:
            yield ok(f"The server is ready, with {len(server.index)} model versions")
        else:
            yield error(
                "The server is not ready",
                "Load balancers and Kubernetes send it no requests.",
                "'backline models list' shows the state of each model.",
            )


def cold_models(server: ServerFacts) -> Iterator[Finding]:
    for entry in server.index:
        if entry.state == "ON_DEMAND":
            yield note(
                f"{_version(entry.name, entry.version)} is not loaded; the next request loads it",
                "This request waits for the load.",
                f"Load it before requests arrive (backline models load {entry.name}), set `pinned = true`,"
                " or raise --memory-budget if it was evicted.",
            )


def slow_loads(server: ServerFacts) -> Iterator[Finding]:
    for (name, version), seconds in server.load_seconds.items():
        if seconds > _SLOW_LOAD:
            yield warning(
                f"{_version(name, version)} took {seconds:.0f} s to load",
                "A restart, or the load of a new version, takes about as long. Requests that wait for the"
                " load may time out.",
                "Keep the state folder between starts (--state-dir), so that measurements are reused; use a"
                " format that is not compiled at load time; build environments in advance (backline env"
                " build).",
            )


def unused_models(server: ServerFacts) -> Iterator[Finding]:
    never = [
        _version(name, version)
        for (name, version), counts in server.statistics.items()
        if not counts.get("last_inference") and not _count(counts, "success")
    ]
    if never and len(never) < len(server.statistics):
        yield note(
            f"No requests have arrived yet for {', '.join(never)}",
            "These models take memory that other models could use.",
            "Unload these models, or load them on demand: `load = 'on_demand'` in model.toml.",
        )


def failures(server: ServerFacts) -> Iterator[Finding]:
    for (name, version), counts in server.statistics.items():
        reasons = {
            reason: int(count) for reason, count in counts.get("failure_stats", {}).items() if int(count)
        }
        failed = sum(reasons.values()) or _count(counts, "fail")
        total = failed + _count(counts, "success")
        if total >= _ENOUGH and failed > _FAILED_SHARE * total:
            told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            yield warning(
                f"{_version(name, version)}: {failed} of {total} requests failed"
                f"{f' ({told})' if told else ''}",
                "Callers got errors instead of results.",
                "--log-verbose 1 logs each failed request with its reason. If the reason is a full queue, the"
                " model needs more instances: see 'backline tune'.",
            )


def stuck_runs(server: ServerFacts) -> Iterator[Finding]:
    for (name, version), count in server.stuck.items():
        if count:
            yield error(
                f"{_version(name, version)} has {count:.0f} runs that exceeded their time limit and are"
                " still running",
                "Each one occupies a core and its memory until the server restarts.",
                "Serve the model in a worker process, which can be killed: `lane = 'process'`.",
            )


def batching_in_use(server: ServerFacts) -> Iterator[Finding]:
    for key, counts in server.statistics.items():
        config = server.configurations.get(key, {})
        if not config or config.get("ensemble_scheduling") or _count(counts, "success") < _ENOUGH:
            continue
        queue, compute = _mean_us(counts, "queue"), _mean_us(counts, "compute_infer")
        if queue <= _LONG_QUEUE * max(compute, 1.0):
            continue
        name = _version(*key)
        reason = config.get("parameters", {}).get("backline.placement", {}).get("string_value", "")
        times = f"waits {queue / 1000:.1f} ms in the queue and computes for {compute / 1000:.1f} ms"
        if not int(config.get("max_batch_size") or 0):
            yield warning(
                f"{name} is not batched, and a request {times}{f' ({reason})' if reason else ''}",
                "Requests run one after the other.",
                "Export the model with a variable first dimension, or add instances (instance_group).",
            )
        else:
            yield warning(
                f"{name}: a request {times}",
                "The model cannot keep up with its requests.",
                f"backline tune {key[0]} searches for better settings; otherwise add instances or machines.",
            )


def instance_threads(server: ServerFacts) -> Iterator[Finding]:
    for key, config in server.configurations.items():
        groups = config.get("instance_group") or []
        instances = sum(int(group.get("count") or 1) for group in groups if group.get("kind") != "KIND_GPU")
        parameters = config.get("parameters", {})
        text = parameters.get("intra_op_thread_count", {}).get("string_value", "1")
        threads = int(text) if text.isdecimal() else 1
        if server.cores and instances * threads > server.cores and threads > 1:
            yield warning(
                f"{_version(*key)} has {instances} instances with {threads} threads each, on {server.cores}"
                " cores",
                "Runs that have more threads than there are cores slow one another down.",
                f"Keep instances x threads at or below {server.cores}.",
            )


RUNNING: Mapping[str, Callable[[ServerFacts], Iterator[Finding]]] = {
    "answers": answers,
    "server-version": server_version,
    "certificate-of-server": certificate_of_server,
    "clocks": clocks,
    "callers-without-key": callers_without_key,
    "readiness": readiness,
    "cold-models": cold_models,
    "slow-loads": slow_loads,
    "unused-models": unused_models,
    "failures": failures,
    "stuck-runs": stuck_runs,
    "batching-in-use": batching_in_use,
    "instance-threads": instance_threads,
}


def checks_of(server: ServerFacts) -> Mapping[str, Callable[[ServerFacts], Iterator[Finding]]]:
    """Returns the checks that apply. If the server does not respond or refuses the caller, only the check
    "answers" applies.
    """
    return {"answers": answers} if server.problem else RUNNING


def _version(name: str, version: str) -> str:
    return f"{name} version {version}" if version else name


def _count(counts: Mapping[str, Any], name: str) -> int:
    return int(counts.get("inference_stats", {}).get(name, {}).get("count", 0))


def _mean_us(counts: Mapping[str, Any], name: str) -> float:
    times = counts.get("inference_stats", {}).get(name, {})
    count = int(times.get("count", 0))
    return int(times.get("ns", 0)) / count / 1000 if count else 0.0


async def read_running(url: str, options: ClientOptions) -> ServerFacts:
    """Returns the facts that a server discloses about itself and its models."""
    server = ServerFacts(url, now=time.time())
    try:
        async with AsyncClient(url, options) as client:
            transport = await client.transport()
            metadata = await client.metadata()
            index = tuple(await client.models())
            server = replace(
                server,
                name=metadata.name,
                version=metadata.version,
                ready=await client.ready(),
                index=index,
                statistics={
                    (str(one["name"]), str(one["version"])): one
                    for one in await _told(client.statistics(), [])
                },
                cores=usable_cores() if is_loopback(client.address.host) else None,
            )
            configurations = {}
            for entry in index:
                if entry.state == "READY":
                    config = await _told(client.model(entry.name, entry.version).config(explained=True), {})
                    configurations[entry.name, entry.version] = config
            server = replace(server, configurations=configurations)
            if isinstance(transport, HttpTransport):
                server = await _over_http(server, transport, options)
            if client.address.tls:
                expires = _certificate_end(client.address.host, client.address.port, options)
                server = replace(server, certificate_expires=expires)
            over_tcp = client.address.protocol == "http" and not client.address.unix
            if over_tcp and not is_loopback(client.address.host):
                server = replace(server, open_scopes=open_scopes(client.address, options))
    except PermissionDenied as error:
        return ServerFacts(url, problem=error.message, refused=True)
    except BacklineError as error:
        return ServerFacts(url, problem=error.message)
    return server


async def _told(asked: Awaitable[Answer], otherwise: Answer) -> Answer:
    """Returns the result of `asked`, a request to the server, or `otherwise` if the request fails."""
    try:
        return await asked
    except BacklineError:
        return otherwise


async def _over_http(server: ServerFacts, transport: HttpTransport, options: ClientOptions) -> ServerFacts:
    """Adds the facts that are available only over HTTP: the clock and the metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    answer = await transport.exchange(b"GET", b"/metrics", options.timeout)
    if date := answer.headers.get(b"date"):
        with suppress(ValueError):
            moment = parsedate_to_datetime(date.decode()).timestamp()
            server = replace(server, skew=moment - time.time())
    if answer.status != 200:
        return server
    found: dict[str, dict[Key, float]] = {_LOAD_SECONDS: {}, _STUCK: {}}
    for family in text_string_to_metric_families(bytes(answer.body).decode()):
        for sample in family.samples:
            if sample.name in found:
                key = sample.labels.get("model", ""), sample.labels.get("version", "")
                found[sample.name][key] = sample.value
    return replace(server, load_seconds=found[_LOAD_SECONDS], stuck=found[_STUCK])


def open_scopes(address: Address, options: ClientOptions) -> frozenset[str]:
    """Returns the scopes that a server gives to callers without any credential. Empty if the server admits no
    such caller, or if it is not Backline and does not list scopes.

    The request is sent without this package's client, which would add the caller's stored key. Sending an
    invalid key instead would not help: servers refuse it even if they admit callers without a key.
    """
    try:
        if address.tls:
            context = replace(options, certificate=None, key=None).ssl_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address.host, address.port, timeout=options.timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=options.timeout)
        with closing(connection):
            connection.request("GET", f"{address.path}/v2/access")
            told = json.loads(connection.getresponse().read())
        return frozenset(scope for grant in told["grants"] for scope in grant["scopes"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, BacklineError):
        return frozenset()


def _certificate_end(host: str, port: int, options: ClientOptions) -> float | None:
    """Returns when the certificate that a server presents expires, in seconds since 1970; None if the server
    cannot be reached or the certificate cannot be verified.
    """
    try:
        context = options.ssl_context()
        with (
            socket.create_connection((host, port), timeout=options.connect_timeout) as connection,
            context.wrap_socket(connection, server_hostname=host) as secured,
        ):
            ending = (secured.getpeercert() or {}).get("notAfter")
    except (OSError, ssl.SSLError, BacklineError):
        return None
    return float(ssl.cert_time_to_seconds(ending)) if isinstance(ending, str) else None
