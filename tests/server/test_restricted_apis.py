"""Triton's restricted APIs, compared with Triton 2.51: each group, with and without its field."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from backline.access.restricted import (
    GRPC_PREFIX,
    Api,
    RestrictedApis,
    api_of_method,
    api_of_route,
    parse_restrictions,
)
from backline.access.scope import CHANGING, Scope
from backline.dialects.application import build_application
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.observe.metrics import Metrics
from backline.observe.recording import Recorder
from backline_client.values.errors import InvalidArgument
from support import models
from support.server import ServerProcess, serve

#: Requests of each group, as recorded from Triton 2.51, which refuses them with 403 if the group is
#: restricted.
ROUTES = [
    (Api.HEALTH, "GET", "/v2/health/live"),
    (Api.HEALTH, "GET", "/v2/health/ready"),
    (Api.HEALTH, "GET", "/v2/models/add1/ready"),
    (Api.METADATA, "GET", "/v2"),
    (Api.METADATA, "GET", "/v2/models/add1"),
    (Api.METADATA, "GET", "/v2/models/add1/versions/1"),
    (Api.INFERENCE, "POST", "/v2/models/add1/infer"),
    (Api.INFERENCE, "POST", "/v2/models/add1/generate"),
    (Api.INFERENCE, "POST", "/v2/models/add1/generate_stream"),
    (Api.SHARED_MEMORY, "GET", "/v2/systemsharedmemory/status"),
    (Api.SHARED_MEMORY, "GET", "/v2/cudasharedmemory/status"),
    (Api.MODEL_CONFIG, "GET", "/v2/models/add1/config"),
    (Api.MODEL_REPOSITORY, "POST", "/v2/repository/index"),
    (Api.MODEL_REPOSITORY, "POST", "/v2/repository/models/add1/load"),
    (Api.STATISTICS, "GET", "/v2/models/add1/stats"),
    (Api.STATISTICS, "GET", "/v2/models/stats"),
    (Api.TRACE, "GET", "/v2/trace/setting"),
    (Api.TRACE, "GET", "/v2/models/add1/trace/setting"),
    (Api.LOGGING, "GET", "/v2/logging"),
]
CALLS: list[tuple[Api, str, Message]] = [
    (Api.HEALTH, "ServerLive", messages.ServerLiveRequest()),
    (Api.HEALTH, "ServerReady", messages.ServerReadyRequest()),
    (Api.HEALTH, "ModelReady", messages.ModelReadyRequest(name="add1")),
    (Api.METADATA, "ServerMetadata", messages.ServerMetadataRequest()),
    (Api.METADATA, "ModelMetadata", messages.ModelMetadataRequest(name="add1")),
    (Api.INFERENCE, "ModelInfer", messages.ModelInferRequest(model_name="add1")),
    (Api.SHARED_MEMORY, "SystemSharedMemoryStatus", messages.SystemSharedMemoryStatusRequest()),
    (Api.SHARED_MEMORY, "CudaSharedMemoryStatus", messages.CudaSharedMemoryStatusRequest()),
    (Api.MODEL_CONFIG, "ModelConfig", messages.ModelConfigRequest(name="add1")),
    (Api.MODEL_REPOSITORY, "RepositoryIndex", messages.RepositoryIndexRequest()),
    (Api.STATISTICS, "ModelStatistics", messages.ModelStatisticsRequest(name="add1")),
    (Api.TRACE, "TraceSetting", messages.TraceSettingRequest()),
    (Api.LOGGING, "LogSettings", messages.LogSettingsRequest()),
]
REFUSED_OVER_HTTP = {"error": "This API is restricted, expecting header 'Secret'"}
REFUSED_OVER_GRPC = "This protocol is restricted, expecting header 'triton-grpc-protocol-Secret'"


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server all of whose groups are restricted, over both protocols."""
    folder = tmp_path_factory.mktemp("restricted")
    models.add1(folder / "models")
    rule = f"{','.join(Api)}:Secret=open sesame"
    options = (f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}")
    with serve(folder / "models", folder / "log", *options, ready=False) as server:
        server.wait_started()
        yield server


def ask(server: ServerProcess, method: str, path: str, fields: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    connection.request(method, path, "{}" if method == "POST" else None, fields)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize(("api", "method", "path"), ROUTES)
def test_a_route_of_a_restricted_group_needs_the_field_with_its_value(
    restricted: ServerProcess, api: Api, method: str, path: str
) -> None:
    for fields in (
        {},
        {"Secret": "open"},
        {"Secret": "OPEN SESAME"},
        {"triton-grpc-protocol-Secret": "open sesame"},
    ):
        status, body = ask(restricted, method, path, fields)
        assert (status, json.loads(body)) == (403, REFUSED_OVER_HTTP)

    assert ask(restricted, method, path, {"sEcReT": "open sesame"})[0] != 403


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/add1/%69nfer",
        "/v2/models/add1/infer/",
        "/v2/models/%61dd1/infer",
        "/v2/models/add1/infer?x=1",
    ],
)
def test_no_spelling_of_a_path_escapes_its_restriction(restricted: ServerProcess, path: str) -> None:
    assert ask(restricted, "POST", path, {})[0] == 403


def test_a_connection_that_was_admitted_once_still_needs_the_field(restricted: ServerProcess) -> None:
    connection = http.client.HTTPConnection("localhost", restricted.http_port, timeout=30)
    statuses = []
    for fields in ({"Secret": "open sesame"}, {}, {"Secret": "open sesame"}, {}):
        connection.request("GET", "/v2", None, fields)
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()

    assert statuses == [200, 403, 200, 403]


def test_metrics_and_unknown_routes_are_not_restricted(restricted: ServerProcess) -> None:
    assert ask(restricted, "GET", "/metrics", {})[0] == 200
    assert ask(restricted, "GET", "/v2/nothing", {})[0] == 404


@pytest.mark.parametrize(("api", "method", "message"), CALLS)
def test_a_call_of_a_restricted_group_needs_the_metadata(
    restricted: ServerProcess, api: Api, method: str, message: Message
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{restricted.grpc_port}") as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        for metadata in ((), (("secret", "open sesame"),), (("triton-grpc-protocol-secret", "x"),)):
            with pytest.raises(grpc.RpcError) as refusal:
                call(message, metadata=metadata)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refusal.value.details() == REFUSED_OVER_GRPC

        done = call.future(message, metadata=(("triton-grpc-protocol-secret", "open sesame"),))
        # The group is open; the call may be refused for other reasons.
        assert done.exception() is None or done.details() != REFUSED_OVER_GRPC


def test_streams_and_health_checks_over_grpc_need_the_metadata(restricted: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{restricted.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.ModelStreamInfer(iter([messages.ModelInferRequest(model_name="add1")])))
        assert refusal.value.details() == REFUSED_OVER_GRPC
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError):
            check(b"")
        assert check(b"", metadata=(("triton-grpc-protocol-secret", "open sesame"),)) == b"\x08\x01"


@pytest.mark.parametrize(("api", "method", "path"), ROUTES)
def test_the_routes_belong_to_tritons_groups(api: Api, method: str, path: str) -> None:
    pattern = tuple("{}" if part in ("add1", "1") else part for part in path.strip("/").split("/"))

    assert api_of_route(pattern, Scope.INFER if api is Api.INFERENCE else Scope.READ) is api


@pytest.mark.parametrize(("api", "method", "message"), CALLS)
def test_the_methods_belong_to_tritons_groups(api: Api, method: str, message: Message) -> None:
    assert api_of_method(f"/inference.GRPCInferenceService/{method}".encode(), Scope.READ) is api


def test_every_route_but_the_metrics_belongs_to_a_group(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes: dict[str, Scope] = {}

    def add(self: Router, scope: Scope, method: str, pattern: str, *further: Any, **options: Any) -> None:
        scopes[pattern] = max(scope, scopes.get(pattern, scope), key=lambda one: one in CHANGING)

    monkeypatch.setattr(Router, "add", add)
    engine = Engine()
    build_application(engine, Metrics(engine).page, recorder=Recorder(engine, tmp_path))

    groups = {
        pattern: api_of_route(tuple(pattern.strip("/").split("/")), scopes[pattern]) for pattern in scopes
    }

    assert [pattern for pattern, api in groups.items() if api is None] == ["/metrics"]
    # Only what reads, and nothing that runs models, is in the group for everything else.
    others = {scopes[pattern] for pattern, api in groups.items() if api is Api.METADATA}
    assert not others & {*CHANGING, Scope.INFER}
    infers = {api for pattern, api in groups.items() if scopes[pattern] is Scope.INFER}
    assert infers == {Api.INFERENCE}


def test_a_restriction_of_one_protocol_leaves_the_other_open() -> None:
    rules = RestrictedApis(parse_restrictions("--http-restricted-api", ["health:k=v"]), {})

    assert rules.refusal(Api.HEALTH, {}, grpc=False) is not None
    assert rules.refusal(Api.HEALTH, {}, grpc=True) is None
    assert rules.refusal(Api.METADATA, {}, grpc=False) is None


def test_each_group_may_have_another_field() -> None:
    rules = parse_restrictions(
        "--grpc-restricted-protocol", ["health,trace:k=v=w", "logging:j=x"], GRPC_PREFIX
    )

    assert {api: (rule.name, rule.value) for api, rule in rules.items()} == {
        Api.HEALTH: ("triton-grpc-protocol-k", "v=w"),
        Api.TRACE: ("triton-grpc-protocol-k", "v=w"),
        Api.LOGGING: ("triton-grpc-protocol-j", "x"),
    }


def test_an_empty_name_of_a_field_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="option format is"):
        parse_restrictions("--http-restricted-api", ["health:=v"])
