"""Every route and gRPC method, on every port, over every protocol, with every kind of credential.

The routes come from the server's router and the methods from its gRPC descriptors, so that new ones are
covered. What each needs comes from tests/support/scope_oracle.py, which is written by hand.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backline.dialects.application import build_application
from backline.dialects.plugin import DIALECTS
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.observe.metrics import Metrics
from backline.observe.recording import Recorder
from backline_client import protos
from backline_client.protos import Messages
from conformance.h1probe import HttpProbe
from conformance.h2probe import Probe
from support import models
from support.scope_oracle import (
    ABSENT,
    BEFORE_MODEL,
    DEFAULT_MODEL,
    FORBIDDEN,
    LISTS,
    MALFORMED,
    REACHED,
    RPC_RULES,
    SCOPES,
    UNAUTHENTICATED,
    Credential,
    Meaning,
    Routes,
    scope_by,
)
from support.server import ServerProcess, serve

MODEL, OTHER = DEFAULT_MODEL, "m2"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
SERVICES = ("inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection")
CORE = Messages(Path(protos.__file__).with_name("descriptors.binpb"))
#: The messages of each dialect with gRPC services, and these services.
OF_DIALECTS = [
    (
        Messages(
            Path(importlib.import_module(plugin.target.partition(":")[0]).__file__ or "").with_name(
                "descriptors.binpb"
            )
        ),
        plugin.services,
    )
    for plugin in DIALECTS.built_in
    if plugin.services
]
PORTS = ("http", "grpc", "metrics", "unix")
#: Requests in flight on a connection.
WAVE = 64
#: gRPC status codes.
UNIMPLEMENTED, PERMISSION_DENIED, UNAUTHENTICATED_CODE = "12", "7", "16"


@dataclass(frozen=True)
class Combination:
    """One request, and what may become of it."""

    method: str
    target: str
    credential: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    expected: frozenset[str]

    def __str__(self) -> str:
        return (
            f"{self.method} {self.target} with {self.credential}, expected {'/'.join(sorted(self.expected))}"
        )


def known_routes(folder: Path) -> Routes:
    engine = Engine()
    application = build_application(engine, Metrics(engine).page, recorder=Recorder(engine, folder))
    router: Router = application.http.router  # type: ignore[attr-defined]
    list(router.routes())  # also adds the routes that are added late
    return Routes(
        {
            "/" + "/".join(parts): [name.decode() for name in found]
            for parts, found in router._patterns.items()
        }
    )


def known_methods(folder: Path) -> dict[str, Any]:
    """The gRPC methods by path, with the class of their request."""
    engine = Engine()
    served = build_application(engine, Metrics(engine).page).rpc
    described = {
        f"/{service}/{method.name}": messages.message(method.input_type.full_name)
        for messages, services in ((CORE, SERVICES), *OF_DIALECTS)
        for service in services
        for method in messages.pool().FindServiceByName(service).methods
    }
    return {**{path.decode(): None for path in served}, **described}


# credentials


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


class Keys:
    """The keys of the server. For each scope there are one with it, one without it, and a limited one."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "auth.toml"
        self._tables: list[str] = []
        every = frozenset(SCOPES)
        self.none = Credential("no key", named=False)
        self.unknown = Credential("an unknown key", bearer("bk_" + "u" * 43), valid=False)
        self.expired = self._key("expired", every, expires="2020-01-01T00:00:00Z", valid=False)
        self.every = self._key("every-scope", every)
        self.other = self._key("other-model", every, frozenset((OTHER,)))
        self.only = {scope: self._key(f"only-{scope}", frozenset((scope,))) for scope in SCOPES}
        self.limited = {
            scope: self._key(f"{scope}-of-{MODEL}", frozenset((scope,)), frozenset((MODEL,)))
            for scope in SCOPES
        }
        self.but = {scope: self._key(f"all-but-{scope}", every - {scope}) for scope in SCOPES}
        self.file.write_text("\n".join(self._tables))
        right, wrong = self.every.fields[0][1].split()[1], "bk_" + "w" * 43
        #: Other ways to send a right key, and wrong ones.
        self.spellings = [
            Credential("X-API-Key", (("x-api-key", right),), every),
            Credential("bearer in lower case", (("authorization", f"bearer {right}"),), every),
            Credential("no scheme", (("authorization", right),), every),
            Credential("a wrong X-API-Key too", (*bearer(right), ("x-api-key", wrong)), every),
            Credential("a right X-API-Key too", (*bearer(wrong), ("x-api-key", right)), valid=False),
            Credential("Basic", (("authorization", f"Basic {right}"),), valid=False),
            Credential("two keys", (*bearer(wrong), *bearer(right)), valid=False),
            Credential("the right key twice", (*bearer(right), *bearer(right)), valid=False),
            Credential("an empty key", (("authorization", ""),), valid=False),
            Credential("no key after Bearer", (("authorization", "Bearer"),), valid=False),
            Credential("a part of the key", bearer(right[:-1]), valid=False),
            Credential("the hash", bearer(hashlib.sha256(right.encode()).hexdigest()), valid=False),
            Credential("a cookie", (("cookie", f"authorization=Bearer {right}"),), named=False),
            Credential("a proxy's field", (("proxy-authorization", f"Bearer {right}"),), named=False),
        ]

    def _key(
        self,
        name: str,
        scopes: frozenset[str],
        models: frozenset[str] | None = None,
        *,
        expires: str = "",
        valid: bool = True,
    ) -> Credential:
        key = f"bk_{name}".ljust(46, "k")
        table = [
            "[[keys]]",
            f'name = "{name}"',
            f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"',
            f"scopes = {json.dumps(sorted(scopes))}",
        ]
        table += [f"models = {json.dumps(sorted(models))}"] if models else []
        table += [f"expires = {expires}"] if expires else []
        self._tables.append("\n".join(table) + "\n")
        return Credential(f"the key {name}", bearer(key), scopes, models, valid)

    def for_scope(self, scope: str | None) -> list[Credential]:
        """The kinds of credentials; without a scope, the target means nothing to anybody."""
        kinds = [self.none, self.unknown, self.every]
        if scope is not None:
            kinds += [self.expired, self.other]
        if scope in self.only:
            kinds += [self.only[scope], self.limited[scope], self.but[scope]]
        return kinds


# targets


def fill(pattern: str, model: str = MODEL) -> str:
    """A path of a pattern: about the model's version 1, or a thing named `x`."""
    parts: list[str] = []
    for part in pattern.split("/"):
        before = parts[-1] if parts else ""
        filled = model if before in BEFORE_MODEL else "1" if before == "versions" else "x"
        parts.append(filled + part[2:] if part[:2] == "{}" else part)
    return "/".join(parts)


def quoted(text: str) -> str:
    """With every character of the segments percent-encoded."""
    return "/".join("".join(f"%{ord(letter):02x}" for letter in part) for part in text.split("/"))


def variants(pattern: str) -> Iterator[str]:
    """Other spellings of a path: some mean the same, some mean another model, some mean nothing."""
    path = fill(pattern)
    yield from (path + end for end in ("/", "//", "?", "?key=1", "?/../v2/health/live", "/?x", "#", "#/v2"))
    yield from (
        path + end for end in ("/.", "/..", "/%2e", "/%2e%2e", "%2f", "%2F..", ";x", "%00", "%20", "%ff")
    )
    yield from (start + path for start in ("/", "//", "/.", "/..", "/%2e", "/%2e%2e", "/x/..", "/%2f"))
    yield from (
        "/v2/health/live/.." + path,
        "/v2/health/live/%2e%2e/%2e%2e" + path,
        "/v2/health/live/" + path,
    )
    yield from (path.upper(), path.replace("v2", "V2"), path.title(), quoted(path), quoted(quoted(path)))
    yield from (path.replace("/", "//"), path.replace("/", "/./"), path.replace("/", "/%2e/"))
    yield "/" + path[1:].replace("/", "%2f")
    yield "/" + path[1:].replace("/", "%5c")
    yield "/" + path[1:].replace("/", "\\")
    yield path[1:] or "x"
    yield from (
        start + path for start in ("http://h", "HTTPS://h:1", "http://u@h", "//h", "ftp://h", "http:/")
    )
    yield "http://h" + path + "?x=http://h/v2/health/live"
    for model in (
        "M1", OTHER, "..", "%2e%2e", ".", "m1%2f", "m1%2f..%2fm1", "%2e%2e%2fm1", "m1;x", "%6d1", "m%31",
        "m1%00", "m1%20", "%20m1", "m1*", "*", "m1,m2",
    ):  # fmt: skip
        yield fill(pattern, model)
    yield fill(pattern, "/".join((OTHER, "..", MODEL)))


# how a request ends


def verdict(status: int, body: bytes, allow: bool) -> str:
    if status in (401, 403):
        return str(status)
    if status == 405 or (status == 204 and allow) or (status == 415 and b"is a gRPC method" in body):
        return ABSENT
    if status == 404 and b"Not Found: " in body:
        return ABSENT
    if status == 400 and b"not UTF-8" in body:
        return ABSENT
    if status == 400 and (b"request's target" in body or b"request is malformed" in body):
        return MALFORMED
    return REACHED


def agrees(combination: Combination, got: str, status: int) -> bool:
    """HEAD has no body that would tell a missing route from a missing model."""
    return got in combination.expected or (
        combination.method == "HEAD" and status == 404 and combination.expected == {ABSENT}
    )


class Matrix:
    """Sends combinations to a server and collects those that end otherwise than expected."""

    def __init__(self, running: ServerProcess, unix: Path) -> None:
        self._running = running
        self._unix = unix
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def _connect(self, port: str) -> socket.socket:
        if port == "unix":
            connected = socket.socket(socket.AF_UNIX)
            connected.connect(str(self._unix))
            return connected
        connected = socket.create_connection(("127.0.0.1", getattr(self._running, f"{port}_port")))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def _record(self, port: str, protocol: str, combination: Combination, got: str, status: int) -> None:
        self.counts[f"{protocol} on {port}"] += 1
        if not agrees(combination, got, status):
            self.wrong.append(f"{protocol} on {port}: {combination}, got {got} ({status})")

    def http1(self, port: str, combinations: Sequence[Combination]) -> None:
        probe = HttpProbe("127.0.0.1", 0, 60, self._connect(port))
        waiting = list(combinations)
        while waiting:
            # The server closes the connection after a malformed request, so that one ends the wave.
            last = next((n for n, one in enumerate(waiting[:WAVE]) if MALFORMED in one.expected), WAVE)
            wave = waiting[: last + 1]
            probe.send(b"".join(map(_http1_bytes, wave)))
            for combination in wave:
                waiting.pop(0)
                answer = probe.read(head_only=combination.method == "HEAD")
                closes = answer is None or answer.headers.get("connection") == "close"
                if answer is None:
                    self._record(port, "HTTP/1.1", combination, MALFORMED, 0)
                else:
                    got = verdict(answer.status, answer.body, "allow" in answer.headers)
                    self._record(port, "HTTP/1.1", combination, got, answer.status)
                if closes:
                    probe.close()
                    probe = HttpProbe("127.0.0.1", 0, 60, self._connect(port))
                    break
        probe.close()

    def http2(self, port: str, combinations: Sequence[Combination], *, grpc: bool = False) -> None:
        protocol = "gRPC" if grpc else "HTTP/2"
        probe = self._probe(port)
        stream = 1
        for start in range(0, len(combinations), WAVE):
            wave = combinations[start : start + WAVE]
            streams = range(stream, stream + 2 * len(wave), 2)
            stream = streams[-1] + 2
            for number, combination in zip(streams, wave, strict=True):
                probe.headers(
                    number,
                    [
                        (":method", combination.method),
                        (":scheme", "http"),
                        (":path", combination.target),
                        (":authority", "127.0.0.1"),
                        *combination.fields,
                    ],
                    end=not combination.body,
                )
                if combination.body:
                    probe.data(number, combination.body)
            found = probe.outcomes(streams, calls=grpc)
            for number, combination in zip(streams, wave, strict=True):
                outcome = found[number]
                status = int(outcome.fields.get(":status", "0"))
                if outcome.ended:
                    got = MALFORMED if outcome.ended == "reset 0x1" else outcome.ended
                elif grpc:
                    got = _rpc_verdict(outcome.fields, outcome.body)
                else:
                    got = verdict(status, outcome.body, "allow" in outcome.fields)
                self._record(port, protocol, combination, got, status)
                if grpc and outcome.body:
                    probe.reset(number)  # a watch would stay open
        probe.close()

    def _probe(self, port: str) -> Probe:
        probe = Probe("127.0.0.1", 0, 60, self._connect(port))
        probe.handshake()
        return probe


def _http1_bytes(combination: Combination) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in combination.fields)
    return (
        f"{combination.method} {combination.target} HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}"
        f"content-length: {len(combination.body)}\r\n\r\n"
    ).encode() + combination.body


def _rpc_verdict(fields: dict[str, str], body: bytes) -> str:
    if b"does not have the scope" in body:  # a stream answers each of its messages
        return FORBIDDEN
    if body:
        return REACHED
    code = fields.get("grpc-status", "")
    if code == UNIMPLEMENTED and "method" in fields.get("grpc-message", "").lower():
        return ABSENT
    return {UNAUTHENTICATED_CODE: UNAUTHENTICATED, PERMISSION_DENIED: FORBIDDEN}.get(code, REACHED)


# the combinations


def http_combinations(
    routes: Routes,
    targets: Sequence[tuple[str, str]],
    credentials: Callable[[str | None], Sequence[Credential]],
    *,
    http2: bool,
) -> list[Combination]:
    found = []
    for method, target in targets:
        meaning = routes.meaning(method, target, http2=http2)
        body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
        fields = (("content-type", "application/json"),) if body else ()
        found += [
            Combination(
                method, target, one.name, (*fields, *one.fields), body, one.expected(meaning)
            )
            for one in credentials(meaning.scope)
        ]  # fmt: skip
    return found


def rpc_combinations(
    methods: dict[str, Any], credentials: Callable[[str | None], Sequence[Credential]]
) -> list[Combination]:
    found = []
    for path, kind in methods.items():
        scope = scope_by(RPC_RULES, path[1:])
        # An absent field is about every model.
        for model in (MODEL, OTHER, None):
            encoded, named = rpc_message(path, kind, model)
            if model is not None and not named:
                continue
            for one in credentials(scope):
                expected = one.expected(Meaning(scope, model, lists=LISTS.fullmatch(path[1:]) is not None))
                if scope == "infer" and model is None:
                    continue  # without a model, there is nothing to run
                found.append(rpc_combination(path, one, encoded, expected))
    return found


def rpc_combination(path: str, one: Credential, encoded: bytes, expected: frozenset[str]) -> Combination:
    fields = (("content-type", "application/grpc"), ("te", "trailers"), *one.fields)
    body = struct.pack(">BI", 0, len(encoded)) + encoded
    return Combination("POST", path, one.name, fields, body, expected)


def rpc_message(path: str, kind: Any, model: str | None) -> tuple[bytes, bool]:
    """A request about a model, and whether its type has a field that names one."""
    if kind is None:  # version 1alpha of reflection has the messages of version 1
        return b"", False
    request = kind()
    fields = {field.name for field in request.DESCRIPTOR.fields}
    if "model_spec" in fields:
        request.model_spec.name = model or ""
        return request.SerializeToString(), True
    about_models = path.rpartition("/")[2].startswith("Model")
    name = "model_name" if "model_name" in fields else "name" if about_models and "name" in fields else None
    if name is not None and model is not None:
        setattr(request, name, model)
    return request.SerializeToString(), name is not None


def plain_targets(routes: Routes) -> list[tuple[str, str]]:
    patterns = dict.fromkeys(pattern for _, pattern in routes.scopes)
    return [(method, fill(pattern)) for pattern in patterns for method in METHODS] + [
        (method, "/v2/none") for method in METHODS
    ]


def variant_targets(routes: Routes) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (method, target)
            for method, pattern in routes.scopes
            if method != "HEAD"
            for target in variants(pattern)
        )
    )


# the servers

OPTIONS = ("--model-control-mode", "none")


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Routes:
    return known_routes(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return known_methods(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Matrix]:
    models.add1(tmp_path / "models", name=MODEL)
    models.add1(tmp_path / "models", name=OTHER)
    unix = tmp_path / "socket"
    options = (*OPTIONS, "--unix-socket", str(unix), "--default-model", MODEL, *request.param)
    if "--auth" in options:
        options = (*options, str(request.getfixturevalue("keys").file))
    with serve(tmp_path / "models", tmp_path / "log", *options) as running:
        yield Matrix(running, unix)


def check(matrix: Matrix, began: float) -> None:
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(matrix.counts.items()))
    print(f"{matrix.counts.total()} combinations in {time.monotonic() - began:.1f} s: {told}")
    assert not matrix.wrong, f"{len(matrix.wrong)} are wrong, such as:\n" + "\n".join(matrix.wrong[:40])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("served", [("--auth",)], indirect=True)
def test_every_route_lets_in_exactly_who_may(
    served: Matrix, routes: Routes, methods: dict[str, Any], keys: Keys
) -> None:
    began = time.monotonic()
    plain = plain_targets(routes)
    for port in PORTS:
        served.http1(port, http_combinations(routes, plain, keys.for_scope, http2=False))
        served.http2(port, http_combinations(routes, plain, keys.for_scope, http2=True))
        served.http2(port, rpc_combinations(methods, keys.for_scope), grpc=True)
    check(served, began)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("served", [("--auth",)], indirect=True)
def test_no_spelling_of_a_path_is_a_way_in(served: Matrix, routes: Routes, keys: Keys) -> None:
    began = time.monotonic()
    spelled = variant_targets(routes)
    # Each port takes a part, as the same code serves all of them.
    for number, port in enumerate(PORTS):
        part = spelled[number :: len(PORTS)]
        served.http1(port, http_combinations(routes, part, keys.for_scope, http2=False))
        served.http2(port, http_combinations(routes, part, keys.for_scope, http2=True))
    assert served.counts.total() > 20_000
    check(served, began)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("served", [("--auth",)], indirect=True)
def test_no_spelling_of_a_key_is_a_way_in(
    served: Matrix, routes: Routes, methods: dict[str, Any], keys: Keys
) -> None:
    began = time.monotonic()
    known = [(method, fill(pattern)) for method, pattern in routes.scopes]

    def spellings(_: str | None) -> list[Credential]:
        return keys.spellings

    for port in ("http", "unix"):
        served.http1(port, http_combinations(routes, known, spellings, http2=False))
        served.http2(port, http_combinations(routes, known, spellings, http2=True))
        served.http2(port, rpc_combinations(methods, spellings), grpc=True)
    check(served, began)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("served", [("--auth",)], indirect=True)
def test_no_protocol_reaches_what_belongs_to_another(
    served: Matrix, routes: Routes, methods: dict[str, Any], keys: Keys
) -> None:
    """REST routes called as gRPC, gRPC methods called as plain HTTP, and misspelled methods."""
    began = time.monotonic()
    outside = frozenset((ABSENT, MALFORMED, UNAUTHENTICATED, FORBIDDEN))
    everyone = [keys.none, keys.unknown, keys.other, keys.every]
    paths = [fill(pattern) for pattern in dict.fromkeys(pattern for _, pattern in routes.scopes)]
    for path in methods:
        service, _, method = path[1:].rpartition("/")
        paths += (path + "/", "/" + path, path.lower(), path + "?x", path[1:], f"/{service}%2f{method}")
        paths += (f"/{service}//{method}", f"/{service}/../{service}/{method}", f"/{quoted(path[1:])}")
        paths += (path + "%00", f"http://h{path}", path + ";x", f"/x{path}", path + ".")
    calls = [rpc_combination(path, one, b"", outside) for path in paths for one in everyone]
    plain = [
        Combination(method, path, one.name, (("content-type", kind), *one.fields), b"{}", outside)
        for path in methods
        for method in ("GET", "POST", "PUT")
        for kind in ("application/json", "application/grpc-web+proto", "application/grpcx")
        for one in everyone
    ]
    for port in PORTS:
        served.http2(port, calls, grpc=True)
        served.http2(port, plain)
        served.http1(port, plain)
    check(served, began)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("served", "anonymous"),
    [
        pytest.param(("--host", "0.0.0.0"), ("infer", "read", "metrics"), id="on a network"),
        pytest.param(("--host", "0.0.0.0", "--insecure-open"), SCOPES, id="open"),
        pytest.param((), SCOPES, id="on the loopback"),
    ],
    indirect=["served"],
)
def test_without_keys_callers_may_do_what_the_address_allows(
    served: Matrix, routes: Routes, methods: dict[str, Any], anonymous: tuple[str, ...]
) -> None:
    began = time.monotonic()
    limited = len(anonymous) < len(SCOPES)
    callers = [
        Credential("no key", (), frozenset(anonymous), named=False),
        Credential("a key", bearer("k" * 20), frozenset(anonymous), valid=not limited),
    ]
    plain = plain_targets(routes)
    for port in PORTS:
        served.http1(port, http_combinations(routes, plain, lambda _: callers, http2=False))
        served.http2(port, http_combinations(routes, plain, lambda _: callers, http2=True))
        served.http2(port, rpc_combinations(methods, lambda _: callers), grpc=True)
    check(served, began)
