"""Cross-site requests from web pages, on every port and protocol, and requests from other clients."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backline.wire.http2 import frames
from support.server import ServerProcess, serve
from support.tools import make_certificate, run, tool
from wire.conftest import read_answer
from wire.http2.served import FrameClient

ALLOWED = "https://console.example.com"
FOREIGN = "http://evil.example"
LOGGING = "/v2/logging"
INFER = "/v2/models/add1/infer"
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
OPTIONS = (
    "--model-control-mode",
    "explicit",
    "--load-model",
    "*",
    "--cors-origin",
    ALLOWED,
    "--allowed-host",
    "models",
    "--allowed-host",
    "*.example.org",
)


@pytest.fixture(scope="module")
def served(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("access")
    with serve(
        model_repository,
        folder / "log",
        *OPTIONS,
        *("--model-control-mode", "explicit", "--load-model", "*"),
        *("--unix-socket", str(folder / "socket")),
    ) as running:
        yield running


def ask(port: int, method: str, path: str, body: str = "", **fields: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the answer; underscores in field names become hyphens."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()


def error_of(answer: tuple[int, dict[str, str], str]) -> str:
    status, headers, body = answer
    assert status == 403
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert isinstance(error, str)
    return error


@pytest.mark.parametrize("port", ["http_port", "grpc_port", "metrics_port"])
def test_every_port_refuses_foreign_origins(served: ServerProcess, port: str) -> None:
    number = getattr(served, port)

    assert "--cors-origin" in error_of(ask(number, "POST", LOGGING, "{}", origin=FOREIGN))
    assert "--allowed-host evil.example" in error_of(ask(number, "POST", LOGGING, "{}", host="evil.example"))
    assert "Sec-Fetch-Site" in error_of(ask(number, "POST", INFER, BODY, sec_fetch_site="cross-site"))
    assert "application/json" in error_of(
        ask(number, "POST", INFER, BODY, content_type="text/plain", referer="http://localhost/")
    )


def test_a_refused_request_leaves_its_connection_open_whatever_the_body(served: ServerProcess) -> None:
    with closing(HTTPConnection("127.0.0.1", served.http_port, timeout=30)) as connection:
        for size in (2, 3000, 60_000):
            for headers in ({"Origin": FOREIGN}, {}):
                connection.request("POST", LOGGING, b"{}".ljust(size), headers)
                opened = connection.sock
                answer = connection.getresponse()
                answer.read()
                assert answer.status == (403 if headers else 200)
                assert connection.sock is opened


def test_an_origin_is_checked_after_an_equal_head_without_one(served: ServerProcess) -> None:
    """Parsed heads are cached; a cached head must not hide an origin."""
    fields = {"host": "localhost", "content_type": "application/json"}
    with closing(HTTPConnection("127.0.0.1", served.http_port, timeout=30)) as connection:
        statuses = []
        for host in ("localhost", "localhost", "localhost", "a.example", "a.example", "localhost"):
            connection.request("POST", LOGGING, "{}", {**fields, "host": host})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    assert statuses == [200, 200, 200, 403, 403, 200]


@pytest.mark.parametrize(
    "head",
    [
        ("POST {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n"
        "Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n"),
        ("POST {path} HTTP/1.1\r\nHost: localhost\r\n"
        "Transfer-Encoding: chunked\r\nORIGIN: {origin}\r\n\r\n2\r\n"),
        "POST {path} HTTP/1.0\r\nOrigin: {origin}\r\nContent-Length: 2\r\n\r\n",
        "POST http://localhost{path} HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n",
        ("POST {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        "Origin: {origin}\r\nContent-Length: 2\r\n\r\n"),
        "POST {path}/ HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Length: 2\r\n\r\n",
        "POST {quoted} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Length: 2\r\n\r\n",
        "POST {path}?x=1 HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Length: 2\r\n\r\n",
    ],
)  # fmt: skip
def test_no_spelling_of_a_request_evades_the_check(served: ServerProcess, head: str) -> None:
    sent = head.format(path=LOGGING, quoted="/v2/%6cogging", origin=FOREIGN).encode()
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=30) as client:
        client.sendall(sent + b"{}\r\n0\r\n\r\n" if b"chunked" in sent else sent + b"{}")
        assert client.recv(12) == b"HTTP/1.1 403"


@pytest.mark.parametrize(
    "host", ["models", "gpu.example.org:8000", "[::1]:8000", "10.1.2.3", socket.gethostname()]
)
def test_the_servers_own_host_names_are_accepted(served: ServerProcess, host: str) -> None:
    assert ask(served.http_port, "POST", LOGGING, "{}", host=host)[0] == 200


def test_clients_that_are_not_browsers_may_infer_under_any_host_name(served: ServerProcess) -> None:
    assert ask(served.http_port, "POST", INFER, BODY, host="models.namespace.svc")[0] == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_known_host_name(served: ServerProcess, path: str) -> None:
    assert ask(served.http_port, "GET", path, host="evil.example", origin=FOREIGN)[0] == 200


READ = [
    "/",
    "/v2",
    "/v2/models",
    "/v2/models/add1",
    "/v2/models/add1/config",
    "/v2/models/stats",
    LOGGING,
    "/metrics",
]


@pytest.mark.parametrize("path", READ)
def test_reading_needs_a_host_name_that_no_page_can_have(served: ServerProcess, path: str) -> None:
    refused = ask(served.metrics_port, "GET", path, host="evil.example:8002")
    assert "--allowed-host evil.example" in error_of(refused)

    for host in ("10.1.2.3:8002", "[fd00::1]:8002", "backline:8000", "backline.models.svc", "a.example.org"):
        assert ask(served.metrics_port, "GET", path, host=host)[0] == 200


def test_the_repository_index_needs_such_a_name_too(served: ServerProcess) -> None:
    index = "/v2/repository/index"

    assert "--allowed-host" in error_of(ask(served.http_port, "POST", index, "{}", host="evil.example"))
    assert ask(served.http_port, "POST", index, "{}", host="backline")[0] == 200


def test_websockets_are_refused(served: ServerProcess) -> None:
    status, _, body = ask(
        served.http_port, "GET", INFER, connection="Upgrade", upgrade="websocket", origin=FOREIGN,
        sec_websocket_version="13", sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==",
    )  # fmt: skip

    assert status == 400
    assert "Upgrade" in body


def test_a_unix_socket_accepts_any_host_name(served: ServerProcess) -> None:
    path = str(served.log.parent / "socket")
    url = "http://anything" + LOGGING

    assert "log_info" in run("curl", "-s", "--unix-socket", path, "-d", "{}", url)
    assert "--cors-origin" in run(
        "curl", "-s", "--unix-socket", path, "-d", "{}", "-H", f"Origin: {FOREIGN}", url
    )


def test_http2_applies_the_same_checks(served: ServerProcess) -> None:
    def post(path: str, *arguments: str) -> str:
        return run(
            "curl", "-s", "--http2-prior-knowledge", "-w", "\n%{http_code}",
            "-d", "{}", *arguments, served.url + path,
        )  # fmt: skip

    assert post(LOGGING).endswith("\n200")
    assert post(LOGGING, "-H", f"Origin: {FOREIGN}").endswith("\n403")
    assert "--allowed-host" in post(LOGGING, "-H", "Host: evil.example")
    assert "application/json" in post(LOGGING, "-H", "Referer: http://localhost/")
    assert post(INFER, "-H", "Sec-Fetch-Site: same-site").endswith("\n403")


@pytest.mark.parametrize(
    "metadata", [("origin", FOREIGN), ("sec-fetch-site", "cross-site"), ("origin", "null")], ids=str
)
def test_grpc_calls_with_side_effects_are_refused(served: ServerProcess, metadata: tuple[str, str]) -> None:
    with grpc.insecure_channel(f"localhost:{served.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [
            lambda: stub.LogSettings(service_pb2.LogSettingsRequest(), metadata=[metadata]),
            lambda: stub.ModelInfer(service_pb2.ModelInferRequest(model_name="add1"), metadata=[metadata]),
            lambda: list(stub.ModelStreamInfer(iter(()), metadata=[metadata])),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "--cors-origin" in raised.value.details()
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=[metadata]).live
        assert stub.LogSettings(service_pb2.LogSettingsRequest(), metadata=[("origin", ALLOWED)]).settings


def test_grpc_from_a_page_over_tls_is_refused(model_repository: Path, tmp_path: Path) -> None:
    """Over TLS a browser speaks HTTP/2, and a page can send application/grpc."""
    made = make_certificate(tmp_path)
    tls = ("--ssl-certificate", str(made.certificate), "--ssl-key", str(made.key))
    with serve(model_repository, tmp_path / "log", *tls, ready=False) as server:
        server.wait_started()
        answer = run(
            "curl", "-sk", "--http2", "-D", "-", "-o", "/dev/null",
            "-H", "content-type: application/grpc", "-H", f"origin: {FOREIGN}",
            "--data-binary", "\0\0\0\0\0".replace("\0", ""),
            f"https://localhost:{server.grpc_port}/inference.GRPCInferenceService/LogSettings",
        )  # fmt: skip

    assert "grpc-status: 7" in answer


def test_stock_clients_are_admitted(served: ServerProcess) -> None:
    value = np.ones((1, 16), np.float32)
    for kit, url in (
        (triton_http, f"localhost:{served.http_port}"),
        (triton_grpc, f"127.0.0.1:{served.grpc_port}"),
    ):
        with closing(kit.InferenceServerClient(url)) as client:
            client.update_log_settings({"log_info": True})
            client.update_trace_settings(settings={"trace_rate": "1000"})
            given = kit.InferInput("INPUT0", [1, 16], "FP32")
            given.set_data_from_numpy(value)
            assert (client.infer("add1", [given]).as_numpy("OUTPUT0") == 2).all()


@pytest.mark.parametrize("arguments", [(), ("-H", "Content-Type:"), ("-H", "Content-Type: application/json")])
def test_curl_is_admitted_with_any_content_type(served: ServerProcess, arguments: tuple[str, ...]) -> None:
    tool("curl")

    assert "log_info" in run("curl", "-s", "-d", "{}", *arguments, served.url + LOGGING)
    assert "OUTPUT0" in run("curl", "-s", "-d", BODY, *arguments, served.url + INFER)


# Cross-origin resource sharing


@pytest.mark.parametrize("path", [INFER, LOGGING, "/v2/models/add1/labels/x", "/metrics", "/v2/none"])
def test_preflight_requests_from_allowed_origins_succeed_on_every_path(
    served: ServerProcess, path: str
) -> None:
    status, headers, _ = ask(
        served.http_port, "OPTIONS", path, origin=ALLOWED, access_control_request_method="PUT",
        access_control_request_headers="content-type, x-mine",
    )  # fmt: skip

    assert status == 204
    assert headers["access-control-allow-origin"] == ALLOWED
    assert "PUT" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == "content-type, x-mine"
    assert headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin", [FOREIGN, "null", ALLOWED + ".evil.example", ALLOWED.upper()])
def test_other_origins_get_no_cors_fields(served: ServerProcess, origin: str) -> None:
    asked = {"origin": origin, "access_control_request_method": "POST"}

    for method, path, fields in (
        ("OPTIONS", INFER, asked),
        ("GET", "/v2", {"origin": origin}),
        ("POST", INFER, {"origin": origin}),
    ):
        assert not any(
            name.startswith("access-control") for name in ask(served.http_port, method, path, **fields)[1]
        )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200), ("GET", "/metrics", 200), ("POST", INFER, 200), ("GET", "/v2/none", 404),
        ("DELETE", "/v2", 405),
    ],
)  # fmt: skip
def test_answers_to_allowed_origins_carry_cors_fields(
    served: ServerProcess, method: str, path: str, status: int
) -> None:
    answered, headers, _ = ask(served.http_port, method, path, BODY if path == INFER else "", origin=ALLOWED)

    assert answered == status
    assert headers["access-control-allow-origin"] == ALLOWED
    assert headers["access-control-expose-headers"] == "*"
    assert "origin" in headers["vary"]


def test_streams_to_allowed_origins_carry_cors_fields(served: ServerProcess) -> None:
    status, headers, body = ask(
        served.http_port, "POST", "/v2/models/add1/generate_stream",
        json.dumps({"INPUT0": [1.0] * 16}), origin=ALLOWED,
    )  # fmt: skip

    assert (status, headers["access-control-allow-origin"]) == (200, ALLOWED)
    assert "OUTPUT0" in body


#: Requests that are refused before their body has arrived: the path, the announced size and the status.
REFUSED_EARLY = [("/v2/models/none/infer", 2_000_000, 404), (INFER, 10_000_000_000, 413)]


@pytest.mark.parametrize(("path", "size", "status"), REFUSED_EARLY)
def test_early_refusals_to_allowed_origins_carry_cors_fields(
    served: ServerProcess, path: str, size: int, status: int
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ALLOWED}\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.http_port), 30) as client:
        client.sendall(head.encode())
        answered, headers, _ = read_answer(client)

    assert answered == status
    assert headers["access-control-allow-origin"] == ALLOWED
    assert headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize(("path", "size", "status"), REFUSED_EARLY)
def test_early_refusals_over_http2_carry_cors_fields(
    served: ServerProcess, path: str, size: int, status: int
) -> None:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    with FrameClient(served.http_port) as client:
        block = client.encoder.encode([*fields, ("origin", ALLOWED), ("content-length", str(size))])
        client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block))
        client.until(frames.HEADERS, 1)

    assert client.fields[":status"] == str(status)
    assert client.fields["access-control-allow-origin"] == ALLOWED


def test_an_error_about_the_compression_of_a_body_carries_cors_fields(served: ServerProcess) -> None:
    status, headers, _ = ask(served.http_port, "POST", INFER, BODY, origin=ALLOWED, content_encoding="br")

    assert status == 415
    assert headers["access-control-allow-origin"] == ALLOWED


def test_early_refusals_to_other_origins_carry_no_cors_fields(served: ServerProcess) -> None:
    headers = ask(served.http_port, "POST", INFER, BODY, origin=FOREIGN)[1]
    assert not any(name.startswith("access-control") for name in headers)


def test_a_malformed_origin_or_host_option_is_refused_at_startup() -> None:
    for arguments, text in (
        (("--cors-origin", "*"), "is not an origin"),
        (("--allowed-host", "http://models"), "is not a host name"),
    ):
        with pytest.raises(AssertionError, match=text):
            run("backline", "serve", ".", *arguments)
