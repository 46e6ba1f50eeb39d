"""A server that trusts the tokens of an issuer, over HTTP and gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from support import models
from support.issuer import Issuer, served
from support.server import ServerProcess, serve

BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
INFER = "/v2/models/add1/infer"
TABLE = """
[[tokens]]
issuer = "https://login.example.org/"
audience = "backline"
jwks = "{}"
scopes = {{ "models:infer" = ["infer"], "models:read" = ["read"] }}
"""


@dataclass(frozen=True)
class Site:
    """A server and the issuer that it trusts."""

    server: ServerProcess
    issuer: Issuer

    def ask(self, method: str, path: str, token: str, body: str = "") -> tuple[int, dict[str, str], str]:
        with closing(HTTPConnection("127.0.0.1", self.server.http_port, timeout=30)) as connection:
            connection.request(method, path, body or None, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read().decode()

    def infer(self, token: str) -> int:
        """The status of an inference, once the keys have been fetched."""
        while True:
            status, fields, told = self.ask("POST", INFER, token, BODY)
            if status != 503:
                return status
            assert "are being fetched" in told
            assert {name.lower() for name in fields} >= {"retry-after"}
            time.sleep(0.01)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    models.add1(folder / "models")
    with served(Issuer()) as issuer:
        auth = folder / "auth.toml"
        auth.write_text(TABLE.format(issuer.url))
        with serve(folder / "models", folder / "log", "--auth", str(auth)) as server:
            yield Site(server, issuer)


def test_a_token_is_a_key_over_http(site: Site) -> None:
    assert site.infer(site.issuer.token()) == 200
    assert site.ask("GET", "/v2", site.issuer.token(scope="models:read"))[0] == 200
    status, _, told = site.ask("GET", "/v2", site.issuer.token())
    assert (status, "the token 'alice' does not have the scope 'read'" in told) == (403, True)
    status, fields, told = site.ask("GET", "/v2", site.issuer.token(aud="other"))
    assert (status, "is for the audience 'other'" in told) == (401, True)
    assert fields["www-authenticate"].startswith("Bearer")


def test_a_token_is_a_key_over_grpc(site: Site) -> None:
    assert site.infer(site.issuer.token()) == 200
    request = service_pb2.ModelInferRequest(model_name="add1")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(
        [1.5] * 16
    )
    with grpc.insecure_channel(f"127.0.0.1:{site.server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        good = (("authorization", f"Bearer {site.issuer.token()}"),)
        for _ in range(3):
            assert stub.ModelInfer(request, metadata=good, timeout=30).model_name == "add1"
        for token, code in (
            (site.issuer.token(scope="models:read"), grpc.StatusCode.PERMISSION_DENIED),
            (site.issuer.token(exp=1), grpc.StatusCode.UNAUTHENTICATED),
            (Issuer().token(), grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(request, metadata=(("authorization", f"Bearer {token}"),), timeout=30)
            assert refused.value.code() is code


def test_a_token_that_is_refused_now_passes_on_the_same_connection_once_it_is_valid(site: Site) -> None:
    """The wire remembers the heads of a connection, but not that they were refused."""
    assert site.infer(site.issuer.token()) == 200
    # With the default leeway of 30 s, this token becomes valid in about a second.
    token = site.issuer.token(nbf=int(time.time()) + 32)
    with grpc.insecure_channel(f"127.0.0.1:{site.server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        request = service_pb2.ModelInferRequest(model_name="add1")
        codes = []
        end = time.monotonic() + 30
        while codes[-1:] != [grpc.StatusCode.INVALID_ARGUMENT]:  # the request lacks its input
            assert time.monotonic() < end, codes
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(request, metadata=metadata, timeout=30)
            codes.append(refused.value.code())
            time.sleep(0.05)
        assert set(codes[:-1]) == {grpc.StatusCode.UNAUTHENTICATED}
