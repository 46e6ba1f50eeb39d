"""docs/protocol.md against a real server's routes, methods and errors."""

from __future__ import annotations

import http.client
import json
import re
from itertools import product
from pathlib import Path

import grpc
import pytest

from backline.dialects.application import build_application
from backline.dialects.open_inference.grpc import stream
from backline.engine.engine import Engine
from backline.observe.metrics import Metrics
from backline.observe.recording import Recorder
from backline.observe.scaling import STEADY
from backline.server import ServerOptions
from backline_client.values import errors
from backline_client.values.datatypes import DataType
from docs.pages import code, read, table, tables
from support.server import ServerProcess

PAGE = "docs/protocol.md"
UNIMPLEMENTED = 12
#: The dialects that the page describes. Those of other servers have pages in docs/moving-from.
OWN = ("plain", "openapi", "console")


def _routes(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Method and path of each row; bracketed parts are optional, giving both forms."""
    routes = []
    for row in rows:
        pattern = code(row["route"])[0]
        variants = {re.sub(r"\[(.*?)\]", "", pattern), re.sub(r"\[(.*?)\]", r"\1", pattern)}
        routes += product(row["method"].split(", "), sorted(variants))
    return routes


def _http_tables() -> list[list[tuple[str, str]]]:
    return [_routes(rows) for rows in tables(PAGE, "method") if "route" in rows[0]]


def _rpc_tables() -> tuple[list[str], list[str]]:
    served, sharing = (rows for rows in tables(PAGE, "method") if "route" not in rows[0])
    one, two = ([code(row["method"])[0] for row in rows] for rows in (served, sharing))
    return one, two


SERVED, CHANGING, RECORDING, SHARING, UNSERVED = _http_tables()
RPCS, SHARING_RPCS = _rpc_tables()


def _ask(server: ServerProcess, method: str, pattern: str) -> tuple[int, str]:
    path = pattern.replace("{model}", "add1").replace("{version}", "1").replace("{file}", "app.js")
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    try:
        connection.request(method, re.sub(r"\{\w+\}", "x", path))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "route"), SERVED)
def test_routes_are_served(server: ServerProcess, method: str, route: str) -> None:
    status, body = _ask(server, method, route)

    if route.endswith(("/infer", "_stream", "/generate")):
        assert (status, "the body is empty" in body) == (400, True)
    elif route.endswith("/stream"):
        assert (status, "accepts only WebSocket" in body) == (426, True)
    elif route.endswith("/examples/{file}"):  # the model has none
        assert (status, "has no example" in body) == (404, True)
    elif route.startswith("/models/"):
        assert (status, "missing required input" in body) == (400, True)
    else:
        assert status == 200


@pytest.mark.parametrize(("method", "route"), CHANGING)
def test_routes_that_change_state_exist(server: ServerProcess, method: str, route: str) -> None:
    status, body = _ask(server, method, route)

    # 400 for the empty body, or 503 where model control is off.
    assert status in (200, 400, 503), body


def test_recording_routes_are_served(server: ServerProcess) -> None:
    start, look, stop = sorted(
        ((method, route) for method, route in RECORDING if "{version}" not in route), reverse=True
    )

    assert [_ask(server, *asked)[0] for asked in (start, look, stop)] == [200, 200, 200]


@pytest.mark.parametrize(("method", "route"), SHARING)
def test_shared_memory_routes_say_how_to_enable_them(server: ServerProcess, method: str, route: str) -> None:
    status, body = _ask(server, method, route)

    assert status == 501
    assert "Start the server with '--allow-client-shm=true'" in json.loads(body)["error"]


@pytest.mark.parametrize(("method", "route"), UNSERVED)
def test_unsupported_routes_are_refused(server: ServerProcess, method: str, route: str) -> None:
    status, body = _ask(server, method, route)

    assert status == 501
    assert "not supported" in json.loads(body)["error"]


def test_no_route_is_missing(tmp_path: Path) -> None:
    engine = Engine()
    application = build_application(
        engine, Metrics(engine).page, recorder=Recorder(engine, tmp_path), dialects=OWN
    )
    router = application.http._resolve.__self__  # type: ignore[attr-defined]
    known = {(method, pattern) for method, pattern, _ in router.routes()}

    assert {
        (method, re.sub(r"\{\w+\}", "{}", route))
        for method, route in SERVED + CHANGING + RECORDING + SHARING + UNSERVED
    } == known


#: The ends of the names of methods with streams.
STREAMS = ("Watch", "Info", "ModelStreamInfer", "StreamIsActive")


def test_no_method_is_missing() -> None:
    application = build_application(Engine(), scaling=lambda: STEADY)

    assert {path.encode() for path in RPCS + SHARING_RPCS} == application.rpc.keys()


@pytest.mark.parametrize("path", [path for path in RPCS + SHARING_RPCS if not path.endswith(STREAMS)])
def test_methods_are_served_as_listed(server: ServerProcess, path: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(path)
        try:
            call(b"", timeout=10)
            code = 0
        except grpc.RpcError as error:
            code = error.code().value[0]  # type: ignore[attr-defined]

    assert (code == UNIMPLEMENTED) == (path in SHARING_RPCS)


def test_the_kinds_of_errors_are_listed_with_their_statuses() -> None:
    listed = {code(row["error"])[0]: (int(row["HTTP"]), int(row["gRPC"])) for row in table(PAGE, "error")}

    assert listed == {
        kind.__name__: (kind.http_status, kind.grpc_code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BacklineError) and "http_status" in vars(kind)
        if kind is not errors.BacklineError
    }


def test_every_datatype_is_listed() -> None:
    (names,) = re.findall(r"^- Datatypes: (.*?)\.", read(PAGE), re.MULTILINE)

    assert set(names.split(", ")) == {datatype.name for datatype in DataType}


def test_the_pages_numbers_are_current() -> None:
    page = read(PAGE)

    assert f"Up to {stream.MAX_IN_FLIGHT} requests of one stream are in flight" in page
    assert f"`{ServerOptions(()).name}`, and only the extensions that work" in page


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("timeout", 10_000_000),
        ("priority", 1),
        ("sequence_id", 7),
        ("binary_data_output", False),
        ("anything", "else"),
    ],
)
def test_parameters_are_accepted_as_listed(server: ServerProcess, parameter: str, value: object) -> None:
    data = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [0] * 16}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    try:
        connection.request(
            "POST", "/v2/models/add1/infer", json.dumps({"inputs": [data], "parameters": {parameter: value}})
        )
        assert connection.getresponse().status == 200
    finally:
        connection.close()
