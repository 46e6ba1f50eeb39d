"""Which limit applies to a large body, by route or by the beginning of a message."""

from __future__ import annotations

from typing import Any

import pytest
from fake_models import OIP, FakeUnaryCall, add_model

from backline.access.access import Access, Policy
from backline.access.gate import AccessTarget
from backline.access.identity import anonymous
from backline.access.scope import Scope
from backline.dialects.application import build_application
from backline.dialects.open_inference.grpc.wire_format import MAX_UNKNOWN_FIELDS
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.wire.application import Application, Bound, Denial
from backline.wire.limits import MIB, BodyLimit
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec


def add(engine: Engine, name: str, *dims: int, version: str = "1") -> None:
    spec = TensorSpec("x", DataType.FP32, dims)
    add_model(engine, name, [spec], [spec], lambda arrays: arrays, version=version)
    engine.refresh([name])


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    add(engine, "fixed", 16)
    add(engine, "large", 1000, 1000)
    return engine


@pytest.fixture
def application(engine: Engine) -> Application:
    return build_application(engine)


def size(bound: Bound) -> int:
    assert isinstance(bound, BodyLimit), bound
    return bound.size


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/fixed/infer",
        "/v2/models/fixed/versions/1/infer",
        "/v2/models/%66ixed/generate",
        "/v2/models/fixed/generate_stream/",
        "/models/fixed",
        "/models/fixed/versions/1",
    ],
)
def test_every_route_that_runs_a_model_has_its_limit(application: Application, path: str) -> None:
    for _ in range(2):
        bound = application.body_limit(b"POST", path.encode())
        assert MIB < size(bound) < 2 * MIB
        assert isinstance(bound, BodyLimit)
        assert bound.whose == " for model 'fixed'"
    assert MIB < size(application.body_limit(b"GET", b"/models/fixed/stream")) < 2 * MIB
    assert size(application.body_limit(b"POST", b"/v2/models/large/infer")) > 64 * MIB


def test_the_limit_follows_the_models(engine: Engine, application: Application) -> None:
    route = b"POST", b"/v2/models/fixed/versions/1/infer"
    before = size(application.body_limit(*route))
    add(engine, "fixed", 4096, version="2")
    assert size(application.body_limit(*route)) > before
    add(engine, "fixed", -1, version="3")
    assert size(application.body_limit(*route)) > 2**40


def test_a_long_path_is_matched_once_for_all_pieces_of_a_body(
    engine: Engine, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = b"/v2/models/fixed/versions/" + b"%31" * 2000 + b"/infer"
    before = size(application.body_limit(b"POST", path))
    matched: list[bytes] = []
    match = Router.target

    def counted(router: Router, method: bytes, asked: bytes) -> AccessTarget | None:
        matched.append(asked)
        return match(router, method, asked)

    monkeypatch.setattr(Router, "target", counted)
    for _ in range(100):
        assert size(application.body_limit(b"POST", path)) == before
    assert matched == []
    add(engine, "fixed", 4096, version="2")
    assert size(application.body_limit(b"POST", path)) > before


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("POST /v2/models/unknown/infer", 404),
        ("POST /v3/nothing", 404),
        ("PUT /v2/models/fixed/infer", 405),
        ("GET /v2/health/ready", MIB),
        ("POST /v2/repository/index", MIB),
        ("OPTIONS /v2/models/fixed/infer", MIB),
        ("POST /v2/repository/models/fixed/load", None),
        ("POST /v2/logging", None),
    ],
)
def test_other_routes(application: Application, route: str, expected: int | None) -> None:
    method, _, path = route.encode().partition(b" ")
    bound = application.body_limit(method, path)
    if isinstance(bound, Denial):
        assert bound.status == expected
        assert bound.fields == ([(b"allow", b"OPTIONS, POST")] if expected == 405 else ())
    elif expected is None:
        assert size(bound) > 2**40
    else:
        assert size(bound) == expected


def beginning(name: str, **fields: Any) -> bytes:
    return message("inference.ModelInferRequest")(model_name=name, **fields).SerializeToString() + b"\x3a\xff"


def limit_of(application: Application, method: str, data: bytes) -> Bound:
    limit = application.rpc[OIP + method.encode()].limit_of
    assert limit is not None
    return limit(FakeUnaryCall(), data)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_message_has_the_limit_of_the_model_that_it_names(application: Application, method: str) -> None:
    fixed = size(limit_of(application, method, beginning("fixed", model_version="1", id="a")))
    assert MIB < fixed < 2 * MIB
    large = limit_of(application, method, beginning("large"))
    assert 16 * MIB < size(large) < 18 * MIB
    for unnamed in (b"", b"\x22\xff\xff\x03" + bytes(100)):
        assert size(limit_of(application, method, unnamed)) == size(large)


def test_a_message_to_an_unknown_model_is_refused_except_on_a_stream(application: Application) -> None:
    refused = limit_of(application, "ModelInfer", beginning("unknown"))
    assert isinstance(refused, Denial)
    assert (refused.grpc_code, refused.message) == (5, "Request for unknown model: 'unknown' is not found")
    invalid = limit_of(application, "ModelInfer", beginning("a/b"))
    assert isinstance(invalid, Denial)
    assert invalid.grpc_code == 3
    for name in ("unknown", "a/b"):
        assert isinstance(limit_of(application, "ModelStreamInfer", beginning(name)), BodyLimit)


def test_a_message_that_begins_with_unknown_fields_is_refused(application: Application) -> None:
    refused = limit_of(application, "ModelInfer", bytes(2 * MAX_UNKNOWN_FIELDS + 2))
    assert isinstance(refused, Denial)
    assert refused.grpc_code == 8


def test_only_messages_that_run_or_change_models_may_be_large(application: Application) -> None:
    assert size(limit_of(application, "ModelMetadata", b"")) == MIB
    assert size(limit_of(application, "RepositoryModelLoad", b"")) > 2**40


def test_a_caller_without_permission_learns_nothing_of_the_model(engine: Engine) -> None:
    application = build_application(engine, access=Access(Policy(anonymous([Scope.READ]))))
    for name in ("fixed", "unknown"):
        bound = limit_of(application, "ModelInfer", beginning(name))
        assert isinstance(bound, BodyLimit)
        assert bound.whose == " for any model"
