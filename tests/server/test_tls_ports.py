"""Ports with and without TLS in one server."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from support import models
from support.authority import Authority, server_options
from support.server import ServerProcess, serve
from support.triton_server import tritonserver

BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
INFER = "/v2/models/add1/infer"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def served(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose ports require client certificates, except the metrics port, which has no TLS."""
    folder = tmp_path_factory.mktemp("served")
    models.add1(folder / "models")
    options = (*server_options(authority.issue("server")), "--ssl-client-ca", str(authority.certificate))
    with serve(folder / "models", folder / "log", *options, "--metrics-plain", ready=False) as running:
        running.wait_started()
        yield running


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: str = "") -> tuple[int, str]:
    connection.request(method, path, body or None)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_a_plain_metrics_port_serves_metrics_and_health_checks(served: ServerProcess) -> None:
    assert f"http://127.0.0.1:{served.metrics_port}/metrics" in served.output
    for path in ("/metrics", "/v2/health/live", "/v2/health/ready"):
        with urllib.request.urlopen(f"http://127.0.0.1:{served.metrics_port}{path}") as answer:
            assert answer.status == 200


@pytest.mark.parametrize("warm", [False, True])
def test_a_plain_metrics_port_serves_nothing_else_over_http(
    served: ServerProcess, authority: Authority, warm: bool
) -> None:
    """Not even under a host that the other ports have admitted already."""
    with closing(http.client.HTTPConnection("localhost", served.metrics_port)) as plain:
        if warm:
            context = ssl.create_default_context(cafile=str(authority.certificate))
            client = authority.issue("client")
            context.load_cert_chain(client.certificate, client.key)
            with closing(
                http.client.HTTPSConnection("localhost", served.http_port, context=context)
            ) as secured:
                secured.putrequest("POST", INFER, skip_host=True)
                secured.putheader("Host", f"localhost:{served.metrics_port}")
                secured.putheader("Content-Length", str(len(BODY)))
                secured.endheaders(BODY.encode())
                assert secured.getresponse().status == 200
            assert ask(plain, "GET", "/metrics")[0] == 200
        for method, path, body in (
            ("POST", INFER, BODY),
            ("GET", "/v2", ""),
            ("GET", "/v2/models/add1", ""),
            ("POST", "/v2/repository/index", "{}"),
            ("POST", "/v2/logging", "{}"),
        ):
            status, told = ask(plain, method, path, body)
            assert status == 403
            assert "serves only metrics and health checks" in told
        assert ask(plain, "GET", "/no/such/route")[0] == 404


def test_a_plain_metrics_port_serves_nothing_else_over_grpc(served: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{served.metrics_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live
        for call, message in (
            (stub.ModelInfer, service_pb2.ModelInferRequest(model_name="add1")),
            (stub.ServerMetadata, service_pb2.ServerMetadataRequest()),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(message, timeout=30)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest(model_name="add1")]), timeout=30))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_the_other_ports_require_a_certificate(served: ServerProcess, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    for port in (served.http_port, served.grpc_port):
        with (
            closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as client,
            pytest.raises((OSError, http.client.RemoteDisconnected)),
        ):
            ask(client, "GET", "/v2/health/live")


def test_only_grpc_speaks_tls_if_asked(authority: Authority, tmp_path: Path) -> None:
    """As with Triton's --grpc-use-ssl; each port has a different address."""
    models.add1(tmp_path / "models")
    issued = authority.issue("server")
    certificate, key = issued.certificate, issued.key
    options = ("--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}")
    addresses = ("--grpc-address=127.0.0.2", "--metrics-address=127.0.0.3")
    with tritonserver(tmp_path / "models", tmp_path / "log", *options, *addresses) as server:
        server.wait_started()
        for address, port in (("127.0.0.1", server.http_port), ("127.0.0.3", server.metrics_port)):
            with urllib.request.urlopen(f"http://{address}:{port}/v2/health/ready") as answer:
                assert answer.status == 200
        trusted = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        named = (("grpc.ssl_target_name_override", "localhost"),)
        with grpc.secure_channel(f"127.0.0.2:{server.grpc_port}", trusted, named) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        with grpc.insecure_channel(f"127.0.0.2:{server.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5)
        assert "only gRPC is encrypted" in server.output
        assert f"grpcs://127.0.0.2:{server.grpc_port}" in server.output
