"""Clients that a server knows by their certificates, next to holders of keys."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from cryptography import x509
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backline.access.keys import generate_key, hash_key
from support import models
from support.authority import Authority, Issued, server_options
from support.server import ServerProcess, serve

BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
INFER = "/v2/models/add1/infer"
TABLES = """
[[keys]]
name = "reader"
sha256 = "{}"
scopes = ["read"]
[[certificates]]
name = "app"
subject = "CN=app"
scopes = ["infer"]
models = ["add1"]
[[certificates]]
name = "operator"
san = "URI:spiffe://example.org/operator"
scopes = ["infer", "read", "manage"]
"""


@dataclass(frozen=True)
class Site:
    """A server that accepts certificates and keys."""

    server: ServerProcess
    authority: Authority
    auth: Path
    text: str
    key: str
    clients: dict[str, Issued]

    def ask(
        self,
        who: str | None,
        method: str,
        path: str,
        body: str = "",
        key: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """The status and body of one request, from the holder of a certificate or from anybody."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        if who is not None:
            context.load_cert_chain(self.clients[who].certificate, self.clients[who].key)
        headers = {**(fields or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        with closing(HTTPSConnection("127.0.0.1", self.server.http_port, context=context)) as connection:
            statuses = []
            for _ in range(2):  # the second request has a head that is known
                connection.request(method, path, body or None, headers)
                answer = connection.getresponse()
                statuses.append((answer.status, answer.read().decode()))
            assert statuses[0][0] == statuses[1][0]
            return statuses[0]

    def channel(self, who: str | None) -> grpc.Channel:
        issued = None if who is None else self.clients[who]
        credentials = grpc.ssl_channel_credentials(
            self.authority.certificate.read_bytes(),
            None if issued is None else issued.key.read_bytes(),
            None if issued is None else issued.certificate.read_bytes(),
        )
        return grpc.secure_channel(f"localhost:{self.server.grpc_port}", credentials)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    models.add1(folder / "models")
    models.add1(folder / "models", name="add2")
    authority = Authority(folder / "authority")
    key, auth = generate_key(), folder / "auth.toml"
    auth.write_text(TABLES.format(hash_key(key)))
    options = (
        *server_options(authority.issue("server")),
        "--ssl-client-ca",
        str(authority.certificate),
        "--ssl-client-auth",
        "optional",
        "--auth",
        str(auth),
    )
    clients = {
        "app": authority.issue("app"),
        "operator": authority.issue(
            "x", x509.UniformResourceIdentifier("spiffe://example.org/operator"), file="operator"
        ),
        "stranger": authority.issue("stranger"),
    }
    with serve(folder / "models", folder / "log", *options, ready=False) as server:
        server.wait_ready(context=ssl.create_default_context(cafile=str(authority.certificate)))
        yield Site(server, authority, auth, auth.read_text(), key, clients)


@pytest.mark.parametrize(
    ("who", "method", "path", "status"),
    [
        ("app", "POST", INFER, 200),
        ("app", "POST", "/v2/models/add2/infer", 403),
        ("app", "GET", "/v2", 403),
        ("operator", "POST", "/v2/models/add2/infer", 200),
        ("operator", "GET", "/v2", 200),
        ("stranger", "POST", INFER, 401),
        (None, "POST", INFER, 401),
        (None, "GET", "/v2/health/live", 200),
    ],
)
def test_a_certificate_allows_what_its_table_says_over_http(
    site: Site, who: str | None, method: str, path: str, status: int
) -> None:
    got, told = site.ask(who, method, path, BODY if method == "POST" else "")
    assert got == status, told


def test_a_key_decides_before_the_certificate(site: Site) -> None:
    assert site.ask("app", "GET", "/v2", key=site.key)[0] == 200
    assert site.ask("app", "POST", INFER, BODY, key=site.key)[0] == 403
    assert site.ask("app", "POST", INFER, BODY, key="bk_wrong")[0] == 401
    assert site.ask(None, "GET", "/v2", key=site.key)[0] == 200


def test_a_page_cannot_use_the_certificate_of_a_browser(site: Site) -> None:
    """Browsers present certificates for every page; keys only a page that knows them can send."""
    evil = {"Origin": "https://evil.example"}
    status, told = site.ask("operator", "POST", INFER, BODY, fields=evil)
    assert status == 403
    assert "evil.example" in told
    assert site.ask("operator", "GET", "/v2", key=site.key, fields=evil)[0] == 200


def test_a_refused_certificate_is_named(site: Site) -> None:
    assert "(CN=stranger," in site.ask("stranger", "POST", INFER, BODY)[1]


def infer(name: str) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=name)
    given = request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    given.contents.fp32_contents.extend([1.5] * 16)
    return request


@pytest.mark.parametrize(
    ("who", "model", "code"),
    [
        ("app", "add1", grpc.StatusCode.OK),
        ("app", "add2", grpc.StatusCode.PERMISSION_DENIED),
        ("operator", "add2", grpc.StatusCode.OK),
        ("stranger", "add1", grpc.StatusCode.UNAUTHENTICATED),
        (None, "add1", grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_a_certificate_allows_what_its_table_says_over_grpc(
    site: Site, who: str | None, model: str, code: grpc.StatusCode
) -> None:
    with site.channel(who) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(3):
            got = grpc.StatusCode.OK
            try:
                stub.ModelInfer(infer(model), timeout=30)
            except grpc.RpcError as error:
                got = error.code()
            assert got is code


def test_a_removed_table_ends_streams_that_are_open(site: Site) -> None:
    sent: SimpleQueue[service_pb2.ModelInferRequest | None] = SimpleQueue()
    with site.channel("app") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter(sent.get, None), timeout=60)
        sent.put(infer("add1"))
        assert next(answers).infer_response.model_name == "add1"
        try:
            site.auth.write_text(site.text.replace("CN=app", "CN=other"))
            told = ""
            while "no table [[certificates]] applies" not in told:
                sent.put(infer("add1"))
                told = next(answers).error_message
        finally:
            site.auth.write_text(site.text)
            sent.put(None)
