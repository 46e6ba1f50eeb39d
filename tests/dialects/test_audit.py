"""Which requests are refused, and which refusals are entered into the audit log."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterable
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from fake_models import OIP, Caller, FakeHttpRequest, FakeUnaryCall, fill_engine
from hypothesis import given, settings
from hypothesis.strategies import randoms

import backline.access.access as access_module
import backline.access.identity as identity_module
import backline.dialects.admission as admission_module
from backline.access.access import Access, Policy
from backline.access.identity import ANY_MODEL, Grant, Identity
from backline.access.keys import hash_key
from backline.access.quota import Quota
from backline.access.rules import CertificateRule
from backline.access.scope import EVERYBODY, Scope
from backline.dialects.application import build_application
from backline.dialects.audit import _MAX_ADDRESSES, _OTHERS, IN_TOTAL, PER_ADDRESS, Audit, RefusalLimit
from backline.dialects.router import MAX_REMEMBERED_SIZE
from backline.wire.application import Application, Call, Certificate, Denial, HttpRequest, Ingress
from backline_client.protos import message
from backline_client.values.control import Attempt
from backline_client.values.errors import BacklineError


def refusal(address: str) -> Attempt:
    return Attempt(0.0, "refused", "GET /v2", address=address)


def test_of_one_address_10_a_second_are_entered_and_the_others_counted() -> None:
    limit = RefusalLimit(0.0)
    assert sum(limit.admits(refusal("a"), 0.0) for _ in range(50)) == PER_ADDRESS
    assert limit.admits(refusal("b"), 0.0)
    (summary,) = limit.summary()
    assert (summary.address, summary.suppressed) == ("a", 50 - PER_ADDRESS)
    assert limit.summary() == []
    assert sum(limit.admits(refusal("a"), 1.0) for _ in range(50)) == PER_ADDRESS


def test_many_addresses_share_a_limit() -> None:
    limit = RefusalLimit(0.0)
    assert sum(limit.admits(refusal(str(number)), 0.0) for number in range(500)) == IN_TOTAL
    assert sum(one.suppressed for one in limit.summary()) == 400


def test_any_number_of_addresses_takes_bounded_memory() -> None:
    limit = RefusalLimit(0.0)
    for number in range(3 * _MAX_ADDRESSES):
        limit.admits(refusal(str(number)), 0.0)
    assert len(limit._buckets) <= _MAX_ADDRESSES + 1
    assert len(limit.suppressed) <= _MAX_ADDRESSES + 1
    assert limit.suppressed[_OTHERS][0] > _MAX_ADDRESSES
    assert sum(one.suppressed for one in limit.summary()) == 3 * _MAX_ADDRESSES - IN_TOTAL
    for number in range(3 * _MAX_ADDRESSES):
        limit.admits(refusal(str(-number)), 1000.0)
    assert len(limit._buckets) <= _MAX_ADDRESSES + 1


async def test_of_a_long_name_only_the_beginning_is_entered() -> None:
    audit = Audit(ENGINE, lambda *_: None)
    for _ in range(PER_ADDRESS + 1):
        audit.denied(Denial(403, 7, "no"), "ModelInfer", 1_000_000 * "x", "192.0.2.1")
    ((_, kept),) = audit._limit.suppressed.values()
    assert 100 < len(kept.model) < 1000


KEYS = (b"bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I", b"bk_6nLeMIjxcEfRsy1hlbrDtxvFbRxIqXvqdX7mHtL2Gug")
#: The number of requests, one a second. Some keys and certificates expire meanwhile.
STEPS = 1500
#: In seconds of time.monotonic(). This clock stands still, so quotas give nothing back.
NOW = 1000.0


class Allowed(NamedTuple):
    """What a policy allows the holder of a credential."""

    grants: tuple[Grant, ...]
    quotas: tuple[Quota, ...] = ()
    expires: float | None = None


class Rules(NamedTuple):
    """A policy by value, as each use of a policy changes its identities."""

    anonymous: Allowed
    keys: tuple[Allowed | None, Allowed | None]
    certificate: Allowed | None = None

    def policy(self) -> Policy:
        unknown, certificate = self.anonymous, self.certificate
        return Policy(
            Identity("", unknown.grants, quotas=unknown.quotas),
            {
                hash_key(key): Identity(f"key {number}", found.grants, found.expires, quotas=found.quotas)
                for number, (key, found) in enumerate(zip(KEYS, self.keys, strict=True))
                if found is not None
            },
            ()
            if certificate is None
            else (
                CertificateRule(
                    "app",
                    APP,
                    frozenset(),
                    certificate.grants[0],
                    certificate.expires,
                    certificate.quotas,
                ),
            ),
        )


class Asked(NamedTuple):
    """A request: its credentials, and whose `number` it is in the list of requests."""

    authorization: bytes | None
    api_key: bytes | None
    subprotocols: bytes | None
    certificate: Certificate | None
    number: int

    @property
    def headers(self) -> dict[bytes, bytes]:
        fields = {
            b"authorization": self.authorization,
            b"x-api-key": self.api_key,
            b"sec-websocket-protocol": self.subprotocols,
        }
        return {name: value for name, value in fields.items() if value is not None}


class CertifiedRequest(FakeHttpRequest):
    certificate = None


class CertifiedCall(FakeUnaryCall):
    certificate = None


APP = frozenset({"CN=app"})
CERTIFICATES = (
    None,
    Certificate(APP, frozenset(), STEPS / 2),
    Certificate(APP, frozenset(), STEPS),
    Certificate(frozenset({"CN=other"}), frozenset(), STEPS),
)
MODEL_A, MODEL_B = (message("inference.ModelInferRequest")(model_name=name) for name in ("a1", "b1"))
#: Requests by method and path, or by the gRPC method and its message, with the scope and the model that each
#: needs. A scope of None means that there is no such route.
REQUESTS: tuple[tuple[str, Any, Scope | None, str | None], ...] = (
    ("GET", "/v2/health/live", Scope.HEALTH, None),
    ("GET", "/v2", Scope.READ, None),
    ("GET", "/v2/models", Scope.READ, ANY_MODEL),
    ("GET", "/v2/models/a1", Scope.READ, "a1"),
    ("POST", "/v2/models/a1/infer", Scope.INFER, "a1"),
    ("POST", "/v2/models/b1/infer", Scope.INFER, "b1"),
    ("POST", "/v2/repository/models/b1/unload", Scope.MANAGE, "b1"),
    ("POST", "/v2", None, None),
    ("ServerLive", message("inference.ServerLiveRequest")(), Scope.HEALTH, None),
    ("ServerMetadata", message("inference.ServerMetadataRequest")(), Scope.READ, None),
    ("ModelMetadata", message("inference.ModelMetadataRequest")(name="a1"), Scope.READ, "a1"),
    ("ModelMetadata", message("inference.ModelMetadataRequest")(name="b1"), Scope.READ, "b1"),
    ("ModelStatistics", message("inference.ModelStatisticsRequest")(), Scope.READ, ANY_MODEL),
    ("ModelInfer", MODEL_A, Scope.INFER, "a1"),
    ("ModelInfer", MODEL_B, Scope.INFER, "b1"),
    (
        "RepositoryModelUnload",
        message("inference.RepositoryModelUnloadRequest")(model_name="b1"),
        Scope.MANAGE,
        "b1",
    ),
)
ALL = Allowed((Grant(frozenset(Scope)),))
GRANTS = (
    (Grant(frozenset()),),
    (Grant(frozenset({Scope.INFER})),),
    (Grant(frozenset({Scope.INFER, Scope.READ}), ("a*",)),),
    (Grant(frozenset({Scope.READ})), Grant(frozenset({Scope.INFER}), ("b*",))),
    ALL.grants,
    ALL.grants,
)
#: Of the last, some is taken in advance.
QUOTAS = (
    (),
    (),
    (Quota(requests_per_second=1, burst=20),),
    (Quota(requests_per_second=1, burst=10, models=("a*",)), Quota(bytes_per_second=1e6)),
    (Quota(requests_per_second=1e6),),
)
AUTHORIZATIONS = (
    *(None,) * 3,
    *(b"Bearer " + key for key in KEYS * 2),
    b"bearer  " + KEYS[0] + b" ",
    KEYS[0],
    b"Bearer" + MAX_REMEMBERED_SIZE * b" " + KEYS[0],
    b"",
    b"Bearer wrong",
    b"Basic " + KEYS[0],
)
API_KEYS = (*(None,) * 4, *KEYS, b"wrong")
SUBPROTOCOLS = (*(None,) * 4, b"other", b"other, backline.bearer." + KEYS[1])


def any_allowed(random: Random) -> Allowed:
    return Allowed(
        random.choice(GRANTS), random.choice(QUOTAS), random.choice((None, random.randrange(STEPS)))
    )


def any_rules(random: Random) -> Rules:
    keys = [any_allowed(random) if random.random() < 0.8 else None for _ in KEYS]
    return Rules(any_allowed(random), (keys[0], keys[1]), random.choice((None, any_allowed(random))))


def any_request(random: Random) -> Asked:
    return Asked(
        random.choice(AUTHORIZATIONS),
        random.choice(API_KEYS),
        random.choice(SUBPROTOCOLS),
        random.choice(CERTIFICATES),
        random.randrange(len(REQUESTS)),
    )


class Entries(list[tuple[str, str, str | None, str]]):
    """Refusals for the audit log: the caller, the route, the model and why."""

    def enter(self, identity: str, peer: str, route: str, model: str | None, why: str) -> None:
        self.append((identity, route, model, why))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(random=randoms(use_true_random=True))
def test_a_repeated_request_is_treated_like_the_first_one(random: Random) -> None:
    """Compares with checks of which nothing is remembered, while keys expire and the rules change."""
    with pytest.MonkeyPatch.context() as patches:
        asyncio.run(compare_with_fresh_checks(random, patches))


async def compare_with_fresh_checks(random: Random, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, expected = Entries(), Entries()
    monkeypatch.setattr(Audit, "_refused", entries.enter)
    clock = SimpleNamespace(seconds=0, monotonic=lambda: NOW, time=lambda: clock.seconds)
    monkeypatch.setattr(identity_module, "time", clock)
    monkeypatch.setattr(access_module, "monotonic", clock.monotonic)
    monkeypatch.setattr(admission_module, "monotonic", clock.monotonic)
    rules = any_rules(random)
    access, plain = Access(rules.policy()), Access(rules.policy())
    caller = Caller(ENGINE, build_application(ENGINE, access=access))
    for _ in range(STEPS):
        clock.seconds += 1
        if random.random() < 0.01:
            rules = any_rules(random)
            access.use(rules.policy())
            plain.use(rules.policy())
        step = any_request(random)
        assert outcome(caller, step) == decide(plain, step, expected), (rules, step)
        assert entries == expected, (rules, step)
        assert paid(access) == paid(plain), (rules, step)
        entries.clear()
        expected.clear()


ENGINE = fill_engine()


def outcome(caller: Caller, asked: Asked) -> tuple[str | None, str]:
    """Sends a request. Returns the holder of its identity, and the error if it is refused."""
    method, path, scope, _ = REQUESTS[asked.number]
    request: HttpRequest | Call
    if isinstance(path, str):
        request = CertifiedRequest(method.encode(), path.encode(), asked.headers, b"")
        request.certificate = asked.certificate  # type: ignore[assignment]
        caller.application.http(request)
        answer = request.answer
        error = "" if answer is None or answer.status not in (401, 403, 429) else answer.error
    else:
        request = call = CertifiedCall(asked.headers)
        call.certificate = asked.certificate  # type: ignore[assignment]
        caller.application.rpc[OIP + method.encode()].handler(call, path.SerializeToString())  # type: ignore
        error = call.error if call.code in (7, 8, 16) else ""
    identity = request.identity
    return None if identity is None or scope is None else identity.holder, error


def decide(access: Access, asked: Asked, entries: Entries) -> tuple[str | None, str]:
    """Returns what `outcome` should return."""
    method, path, scope, model = REQUESTS[asked.number]
    http = isinstance(path, str)
    identity: Identity | None = None
    try:
        identity = access.identify(asked.headers, Ingress(certificate=asked.certificate))
        if scope is None:
            return None, ""
        if scope is Scope.INFER and not http:
            identity.require(scope, ANY_MODEL)
        identity.require(scope, model)
        if identity.meter is not None and scope not in EVERYBODY:
            identity.meter.charge(model, 0 if http else path.ByteSize(), NOW)
    except BacklineError as error:
        if scope is None:
            return None, ""
        if error.http_status in (401, 403):
            route = f"{method} {path}" if http else (OIP + method.encode()).decode()
            holder = "" if identity is None else identity.name
            entries.append((holder, route, model or None, error.public_message))
        return None if identity is None else identity.holder, error.public_message
    return identity.holder, ""


def paid(access: Access) -> list[list[float]]:
    """What the quotas of each key still hold of what was taken in advance."""
    found: Iterable[Identity] = access.policy.keys.values()
    return [[limit.paid for limit in one.meter._limits] for one in found if one.meter is not None]


async def test_clients_cannot_fill_the_memory_with_spellings_and_names() -> None:
    """A key may have any number of spaces before it, and a gRPC message any name of a model."""
    limited = Allowed((Grant(frozenset({Scope.INFER}), ("a*",)),), (Quota(max_in_flight=1, models=("a*",)),))
    access = Access(Rules(ALL, (ALL, limited)).policy())
    application = build_application(ENGINE, access=access)

    def ask(number: int) -> None:
        for method, path in (("GET", "/v2"), ("GET", "/v2/models"), ("POST", "/v2/models/a1/infer")):
            headers = {b"authorization": b"Bearer" + (20_000 + number) * b" " + KEYS[0]}
            application.http(CertifiedRequest(method.encode(), path.encode(), headers, b""))
        for method, asked in (
            ("ServerMetadata", message("inference.ServerMetadataRequest")()),
            ("ModelInfer", MODEL_A),
            ("ModelMetadata", message("inference.ModelMetadataRequest")(name=str(number) * 20_000)),
        ):
            headers = {b"authorization": b"Bearer" + (20_000 + number) * b" " + KEYS[0]}
            send(application, method, asked, headers)
        named = message("inference.ModelInferRequest")(model_name=f"a{number}" * 20_000)
        send(application, "ModelInfer", named, {b"authorization": b"Bearer " + KEYS[1]})

    ask(0)  # creates what is created once
    await asyncio.sleep(0)
    tracemalloc.start()
    try:
        for number in range(1, 50):
            ask(number)
        await asyncio.sleep(0)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


def send(application: Application, method: str, asked: Any, headers: dict[bytes, bytes]) -> CertifiedCall:
    call = CertifiedCall(headers)
    application.rpc[OIP + method.encode()].handler(call, asked.SerializeToString())  # type: ignore[arg-type]
    return call
