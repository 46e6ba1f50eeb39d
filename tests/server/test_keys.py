"""A server with keys: which callers are let in, over HTTP and gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from click.testing import CliRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from backline.cli.keys import command
from backline.cli.models import command as models_command
from conformance.h1probe import HttpProbe
from support import models
from support.server import ServerProcess, serve

BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
INFER = "/v2/models/add1/infer"
#: A load request that makes a model an ensemble of add1 alone.
ENSEMBLE = {
    "platform": "ensemble",
    "max_batch_size": 8,
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [16]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [16]}],
    "ensemble_scheduling": {
        "step": [
            {
                "model_name": "add1",
                "model_version": -1,
                "input_map": {"INPUT0": "INPUT0"},
                "output_map": {"OUTPUT0": "OUTPUT0"},
            }
        ]
    },
}


class Keys:
    """The file of keys, and the keys in it by name."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.of: dict[str, str] = {}
        self.create("app", "--scope", "infer", "--model", "add1")
        self.create("reader", "--scope", "read", "--scope", "metrics")
        self.create("operator", "--scope", "manage", "--scope", "infer")
        self.create(
            "root", *(word for name in ("infer", "read", "manage", "admin") for word in ("--scope", name))
        )
        self.create("limited", "--scope", "read", "--model", "add1")
        self.create("late", "--scope", "infer", "--expires", "2020-01-01")
        self.create("builder", "--scope", "infer", "--scope", "manage", "--model", "own-*")

    def create(self, name: str, *options: str) -> None:
        self.of[name] = self.run("create", name, *options)

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(command, [*arguments, "--auth", str(self.file)])
        assert result.exit_code == 0, result.output
        return result.stdout.strip()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "auth.toml")


@pytest.fixture(scope="module")
def served(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    models.add1(folder / "models")
    models.add1(folder / "models", name="add2")
    options = ("--auth", str(keys.file), "--model-control-mode", "explicit", "--load-model", "*")
    with serve(folder / "models", folder / "log", *options) as running:
        yield running


def ask(
    port: int, method: str, path: str, body: str = "", key: str | None = None, **fields: str
) -> tuple[int, str]:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        if answer.status == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer")
        return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"),
    [
        ("POST", INFER, BODY, {"app", "operator", "root"}),
        ("POST", "/v2/models/add2/infer", BODY, {"operator", "root"}),
        ("GET", "/v2", "", {"reader", "root"}),
        ("GET", "/v2/models/add1", "", {"reader", "root", "limited"}),
        ("GET", "/v2/models/add1/ready", "", {"reader", "root", "limited"}),
        ("GET", "/v2/models/add2", "", {"reader", "root"}),
        ("GET", "/v2/models/stats", "", {"reader", "root", "limited"}),
        ("GET", "/v2/models", "", {"reader", "root", "limited"}),
        ("POST", "/v2/repository/index", "{}", {"reader", "root", "limited"}),
        ("GET", "/v2/repository/history", "", {"reader", "root"}),
        ("GET", "/metrics", "", {"reader"}),
        ("POST", "/v2/repository/models/add2/load", "", {"operator", "root"}),
        ("POST", "/v2/logging", "{}", {"root"}),
        ("POST", "/v2/models/add1/trace/setting", "{}", {"root"}),
    ],
)
@pytest.mark.parametrize("port", ["http_port", "grpc_port", "metrics_port"])
def test_a_route_lets_in_exactly_the_keys_with_its_scope(
    served: ServerProcess, keys: Keys, port: str, method: str, path: str, body: str, allowed: set[str]
) -> None:
    number = getattr(served, port)
    for name, key in keys.of.items():
        status, told = ask(number, method, path, body, key)
        assert status == (200 if name in allowed else 401 if name == "late" else 403), (name, told)
    for wrong in (None, "", "bk_wrong", keys.of["app"][:-1], keys.of["app"] * 20):
        assert ask(number, method, path, body, wrong)[0] == 401
    assert (
        ask(number, method, path, body, x_api_key=keys.of["root" if "root" in allowed else "reader"])[0]
        == 200
    )


def test_a_key_limited_to_a_model_can_show_it(served: ServerProcess, keys: Keys) -> None:
    header = f"Authorization: Bearer {keys.of['limited']}"
    shown = CliRunner().invoke(models_command, ["show", "add1", "--url", served.url, "--header", header])
    assert shown.exit_code == 0, shown.output
    assert "INPUT0" in shown.stdout
    assert "version  state" in shown.stdout


def test_lists_leave_out_the_models_that_a_key_may_not_read_about(served: ServerProcess, keys: Keys) -> None:
    key = keys.of["limited"]
    for method, path in (
        ("GET", "/v2/models"),
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/repository/index"),
        ("POST", "/v2/repository/index"),
    ):
        status, answer = ask(served.http_port, method, path, key=key)
        assert (status, "add1" in answer, "add2" in answer) == (200, True, False), path
        assert "add2" in ask(served.http_port, method, path, key=keys.of["reader"])[1]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        headers = {"authorization": f"Bearer {key}"}
        assert [one.name for one in client.get_model_repository_index(headers=headers).models] == ["add1"]
        counted = client.get_inference_statistics(headers=headers).model_stats
        assert [one.name for one in counted] == ["add1"]
        with pytest.raises(InferenceServerException, match="does not have the scope"):
            client.get_inference_statistics("add2", headers=headers)
        whole = {"authorization": f"Bearer {keys.of['reader']}"}
        assert len(client.get_model_repository_index(headers=whole).models) == 2


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_key(served: ServerProcess, path: str) -> None:
    assert ask(served.metrics_port, "GET", path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/add2/infer/",
        "/v2/models/%61dd2/infer",
        "/v2/models/add2/versions/1/infer",
        "/v2/models/add1/../add2/infer",
    ],
)
def test_another_spelling_of_a_path_is_no_way_in(served: ServerProcess, keys: Keys, path: str) -> None:
    assert ask(served.http_port, "POST", path, BODY, keys.of["app"])[0] in (403, 404)
    assert ask(served.http_port, "POST", path, BODY)[0] in (401, 404)


def test_a_refused_head_request_has_no_body(served: ServerProcess) -> None:
    """The client would take a body for the start of the next response."""
    probe = HttpProbe("127.0.0.1", served.http_port, timeout=30)
    head = "HTTP/1.1\r\nHost: localhost\r\n\r\n"
    probe.send(f"HEAD /v2 {head}GET /v2/health/live {head}".encode())
    refused, live = probe.read(head_only=True), probe.read()
    probe.close()
    assert refused is not None
    assert (refused.status, int(refused.headers["content-length"]) > 0) == (401, True)
    assert live is not None
    assert json.loads(live.body)["live"]


def test_a_key_limited_to_some_models_reaches_no_others_through_an_ensemble(
    served: ServerProcess, keys: Keys
) -> None:
    refusal = "the key 'builder' does not have the scope 'manage' for model 'add1'"
    load, unload = ("/v2/repository/models/own-sum/" + action for action in ("load", "unload"))
    given = {"config": json.dumps(ENSEMBLE), "file:1/none": ""}
    headers = {"authorization": f"Bearer {keys.of['builder']}"}
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        status, told = ask(
            served.http_port, "POST", load, json.dumps({"parameters": given}), keys.of["builder"]
        )
        assert (status, refusal in told) == (403, True), told
        with pytest.raises(InferenceServerException, match=refusal):
            client.load_model("own-sum", headers, given["config"], {"file:1/none": b""})
        assert (
            ask(served.http_port, "POST", load, json.dumps({"parameters": given}), keys.of["operator"])[0]
            == 200
        )

        own = "/v2/models/own-sum/infer"
        assert ask(served.http_port, "POST", own, BODY, keys.of["builder"])[0] == 200
        dependents = json.dumps({"parameters": {"unload_dependents": True}})
        status, told = ask(served.http_port, "POST", unload, dependents, keys.of["builder"])
        assert (status, refusal in told) == (403, True), told
        with pytest.raises(InferenceServerException, match=refusal):
            client.unload_model("own-sum", headers, unload_dependents=True)
        assert ask(served.http_port, "POST", own, BODY, keys.of["builder"])[0] == 200
        assert ask(served.http_port, "POST", unload, "", keys.of["builder"])[0] == 200
        assert ask(served.http_port, "POST", INFER, BODY, keys.of["operator"])[0] == 200


def test_the_history_names_the_key_whatever_user_the_caller_claims_to_be(
    served: ServerProcess, keys: Keys
) -> None:
    load = "/v2/repository/models/add2/load"
    assert ask(served.http_port, "POST", load, key=keys.of["operator"], x_backline_user="root@ops")[0] == 200
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        client.load_model("add2", {"authorization": f"Bearer {keys.of['operator']}"})
    status, told = ask(served.http_port, "GET", "/v2/repository/history?limit=2", key=keys.of["root"])
    assert status == 200
    assert [change["who"] for change in json.loads(told)["changes"]] == [
        "operator, 127.0.0.1",
        "root@ops (operator, 127.0.0.1)",
    ]


def test_stock_clients_send_a_key_as_a_header(served: ServerProcess, keys: Keys) -> None:
    headers = {"Authorization": f"Bearer {keys.of['app']}"}
    for kind, port in ((triton_http, served.http_port), (triton_grpc, served.grpc_port)):
        given = kind.InferInput("INPUT0", [1, 16], "FP32")
        given.set_data_from_numpy(np.full((1, 16), 1.5, np.float32))
        fields = headers if kind is triton_http else {"authorization": headers["Authorization"]}
        with closing(kind.InferenceServerClient(f"127.0.0.1:{port}")) as client:
            assert client.is_server_ready()
            assert client.infer("add1", [given], headers=fields).as_numpy("OUTPUT0")[0, 0] == 2.5
            with pytest.raises(
                InferenceServerException, match="does not have the scope 'infer' for model 'add2'"
            ):
                client.infer("add2", [given], headers=fields)
            with pytest.raises(InferenceServerException, match="needs a key with the scope 'infer'"):
                client.infer("add1", [given])


def test_every_message_of_a_stream_is_checked(served: ServerProcess, keys: Keys) -> None:
    request = service_pb2.ModelInferRequest(model_name="add1")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(np.full(16, 1.5, np.float32).tobytes())
    other = service_pb2.ModelInferRequest()
    other.CopyFrom(request)
    other.model_name = "add2"
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = [("authorization", f"Bearer {keys.of['app']}")]
        first, second, third = stub.ModelStreamInfer(
            iter([request, other, request]), metadata=metadata, timeout=30
        )
        assert not first.error_message
        assert "does not have the scope 'infer' for model 'add2'" in second.error_message
        assert not third.error_message
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.ModelStreamInfer(iter([request]), timeout=30))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for asked, code in (
            ("", None),  # lists what the key may read about
            ("add1", None),
            ("add2", grpc.StatusCode.PERMISSION_DENIED),
        ):
            call = service_pb2.ModelStatisticsRequest(name=asked)
            limited = [("x-api-key", keys.of["limited"])]
            if code is None:
                assert len(stub.ModelStatistics(call, metadata=limited, timeout=30).model_stats) == 1
            else:
                with pytest.raises(grpc.RpcError) as refused:
                    stub.ModelStatistics(call, metadata=limited, timeout=30)
                assert refused.value.code() is code


def test_a_revoked_key_ends_at_once_even_on_an_open_connection(served: ServerProcess, keys: Keys) -> None:
    keys.create("guest", "--scope", "infer")
    headers = {"Authorization": f"Bearer {keys.of['guest']}"}
    with closing(HTTPConnection("127.0.0.1", served.http_port, timeout=30)) as connection:

        def status() -> int:
            connection.request("POST", INFER, BODY, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status

        def becomes(expected: int) -> bool:
            end = time.monotonic() + 30
            while status() != expected:
                if time.monotonic() > end:
                    return False
            return True

        assert becomes(200)  # the server notices the new key
        assert status() == 200
        keys.run("revoke", "guest")
        assert becomes(401)
        assert status() == 401


def test_a_page_of_another_origin_gets_nowhere_without_a_key(served: ServerProcess, keys: Keys) -> None:
    foreign = {"origin": "http://evil.example", "host": "evil.example"}
    assert ask(served.http_port, "POST", INFER, BODY, **foreign)[0] == 401
    assert ask(served.http_port, "POST", INFER, BODY, keys.of["app"], host="models.internal")[0] == 200


def test_on_a_network_without_keys_nothing_can_be_changed(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    explicit = ("--model-control-mode", "explicit", "--load-model", "*", "--host", "0.0.0.0")
    with serve(tmp_path / "models", tmp_path / "log", *explicit) as running:
        assert ask(running.http_port, "POST", INFER, BODY)[0] == 200
        assert ask(running.http_port, "GET", "/metrics")[0] == 200
        status, told = ask(running.http_port, "POST", "/v2/repository/models/add1/unload")
        assert status == 401
        assert "--auth FILE" in told
        assert "--insecure-open" in told
    with serve(tmp_path / "models", tmp_path / "log", *explicit, "--insecure-open") as running:
        assert ask(running.http_port, "POST", "/v2/repository/models/add1/unload")[0] == 200
    key = "k" * 20
    with serve(
        tmp_path / "models", tmp_path / "log", *explicit, environment={"BACKLINE_ADMIN_KEY": key}
    ) as running:
        assert ask(running.http_port, "POST", INFER, BODY)[0] == 401
        assert ask(running.http_port, "POST", "/v2/repository/models/add1/unload", key=key)[0] == 200
