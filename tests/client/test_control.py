"""Changing models through the client, over every transport."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest

from backline_client.client import Client, connect, connect_async
from backline_client.client.errors import (
    AlreadyExists,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from backline_client.protos import message
from backline_client.values.errors import BacklineError
from support import models
from support.server import ServerProcess, free_ports, serve

MakeModel = Callable[..., str]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controlled")


@pytest.fixture(scope="module")
def controlled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose models are loaded and unloaded on request."""
    folder = tmp_path_factory.mktemp("server")
    options = (
        "--model-control-mode",
        "explicit",
        "--state-dir",
        str(folder / "state"),
        "--unix-socket",
        str(folder / "s"),
    )
    with serve(repository, folder / "log", *options) as running:
        yield running


@pytest.fixture(scope="module", params=["http", "grpc", "inproc", "unix", "grpc+unix"])
def changing(
    request: pytest.FixtureRequest,
    controlled: ServerProcess,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """A client that may change the models, over each transport."""
    path = controlled.log.parent / "s"
    urls = {
        "http": controlled.url,
        "grpc": controlled.grpc_url,
        "inproc": f"inproc://{repository}",
        "unix": f"unix:{path}",
        "grpc+unix": f"grpc+unix:{path}",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "XDG_STATE_HOME", str(tmp_path_factory.mktemp("state"))
        )  # where inproc:// keeps its labels
        with connect(urls[request.param], timeout=20) as connected:
            yield connected


@pytest.fixture
def make_model(repository: Path, request: pytest.FixtureRequest) -> MakeModel:
    """Makes a model with versions 1 to n, each of which adds its number; returns its name."""

    def make(versions: int = 3) -> str:
        name = f"model_{abs(hash(request.node.nodeid))}"
        for version in range(1, versions + 1):
            models.add1(repository, name, str(version), constant=float(version))
        return name

    return make


def ready(client: Client, name: str) -> set[str]:
    return {entry.version for entry in client.models() if entry.name == name and entry.ready}


def added(client: Client, name: str, version: str = "") -> tuple[float, str]:
    """What the model adds, and the version that answered."""
    result = client.model(name, version)(np.zeros((1, 16), np.float32))
    return float(result["OUTPUT0"][0, 0]), result.model_version


def test_load_and_unload(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    assert ready(changing, name) == {"3"}
    assert added(changing, name) == (3, "3")
    changing.unload(name)
    assert ready(changing, name) == set()
    with pytest.raises(BacklineError):
        added(changing, name)


def test_one_version_can_be_loaded_next_to_others(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    changing.load(name, 1)
    assert ready(changing, name) == {"1", "3"}
    changing.unload(name, "3")
    assert ready(changing, name) == {"1"}


def test_a_load_can_carry_configuration_and_files(
    changing: Client, make_model: MakeModel, tmp_path: Path
) -> None:
    name = make_model(1)
    file = models.add1(tmp_path, "elsewhere", constant=9.0)
    changing.load(name, config={"backend": "onnxruntime", "max_batch_size": 4}, files={"2/model.onnx": file})
    assert added(changing, name) == (9, "2")
    assert changing[name].config()["max_batch_size"] == 4
    changing.load(name, config='{"backend": "onnxruntime"}', files={"file:4/model.onnx": file.read_bytes()})
    assert added(changing, name) == (9, "4")


def test_labels(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    change = changing.set_label(name, "canary", 2, expected="")
    assert (change.action, change.model, change.label, change.before, change.version) == (
        "label",
        name,
        "canary",
        "",
        "2",
    )
    assert changing.labels(name) == {"canary": "2"}
    assert added(changing, name, "canary") == (2, "2")
    entry = next(entry for entry in changing.models() if (entry.name, entry.version) == (name, "2"))
    assert (entry.labels, entry.default, entry.state) == (("canary",), False, "READY")
    assert changing.remove_label(name, "canary", expected=2).before == "2"
    assert changing.labels(name) == {}


def test_promote_and_rollback(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    changing.promote(name, 3)
    changing.promote(name, 1, expected=3)
    assert added(changing, name) == (1, "1")
    change = changing.rollback(name)
    assert (change.action, change.before, change.version) == ("rollback", "1", "3")
    assert added(changing, name) == (3, "3")


def test_a_label_moved_by_someone_else_stays(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    changing.promote(name, 3)
    with pytest.raises((InvalidArgument, AlreadyExists), match="nothing was changed"):
        changing.promote(name, 2, expected=1)
    assert changing.labels(name) == {"stable": "3"}


def test_the_history_names_the_user(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    changing.set_label(name, "canary", 2)
    label, load = changing.history(name)
    assert (label.action, label.version, load.action, load.version) == ("label", "2", "load", "3")
    assert label.who.startswith(f"{getpass.getuser()}@")
    assert [change.action for change in changing.history(limit=1)] == ["label"]


def test_refresh_makes_new_models_known(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.refresh()
    assert [entry.state for entry in changing.models() if entry.name == name] == [""]


def test_errors_have_their_classes(changing: Client, make_model: MakeModel) -> None:
    name = make_model()
    changing.load(name)
    with pytest.raises(NotFound, match="failed to load 'nope'"):
        changing.load("nope")
    with pytest.raises(NotFound, match="available: 1, 2, 3"):
        changing.promote(name, 9)
    with pytest.raises(NotFound, match="'nope' is not found"):
        changing.labels("nope")
    with pytest.raises(InvalidArgument, match="has no earlier version"):
        changing.rollback(name)


def test_the_reason_of_a_failed_first_load_is_raised(
    changing: Client, make_model: MakeModel, repository: Path
) -> None:
    name = make_model(0)
    broken = repository / name / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    with pytest.raises(
        InvalidArgument, match=f"load failed for model '{name}': version 1 is at UNAVAILABLE state: "
    ):
        changing.load(name)
    models.add1(repository, name)
    changing.load(name)
    assert ready(changing, name) == {"1"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"files": {"1/model.onnx": b""}}, "files need a configuration too"),
        (
            {"config": {}, "files": {"1/model.onnx": "text"}},
            "the content of '1/model.onnx' is a str, expected bytes",
        ),
        (
            {"config": {}, "files": {"1/model.onnx": Path("/nowhere")}},
            "cannot read '/nowhere' for '1/model.onnx'",
        ),
    ],
)
def test_wrong_overrides_are_refused_before_anything_is_sent(options: dict[str, object], text: str) -> None:
    with connect("http://127.0.0.1:9") as client, pytest.raises(InvalidArgument, match=text):
        client.load("add1", **options)  # type: ignore[arg-type]


def test_the_asyncio_client_has_the_same_methods(controlled: ServerProcess, make_model: MakeModel) -> None:
    name = make_model()

    async def change() -> None:
        async with connect_async(controlled.grpc_url) as client:
            await client.load(name)
            await client.load(name, 1)
            await client.set_label(name, "canary", 2)
            await client.promote(name, 3)
            await client.promote(name, 1)
            await client.rollback(name)
            assert await client.labels(name) == {"canary": "2", "stable": "3"}
            await client.remove_label(name, "canary")
            await client.refresh()
            assert len(await client.history(name)) == 7
            await client.unload(name)
            assert not [entry for entry in await client.models() if entry.name == name and entry.ready]

    asyncio.run(change())


def test_a_user_name_in_the_clients_headers_takes_precedence(
    controlled: ServerProcess, make_model: MakeModel
) -> None:
    name = make_model()
    for url in (controlled.url, controlled.grpc_url):
        with connect(url, headers={"X-Backline-User": "ci@pipeline"}) as client:
            client.load(name)
            assert client.history(name)[0].who == "ci@pipeline (127.0.0.1)"


def test_the_error_of_a_load_that_timed_out_says_that_it_continues(answering: Callable[..., str]) -> None:
    with (
        connect(answering(b"", close=False)) as client,
        pytest.raises(DeadlineExceeded, match="The load of 'add1' continues"),
    ):
        client.load("add1", timeout=0.2)


# servers that are not Backline


def http_answer(status: str, body: bytes) -> bytes:
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (
            status.encode(),
            len(body),
            body,
        )
    )


@pytest.mark.parametrize(
    "answer",
    [
        http_answer("404 Not Found", b'{"error":"Not Found"}'),
        http_answer("405 x", b'{"error":"Method Not Allowed"}'),
    ],
)
def test_triton_has_no_labels(answering: Callable[..., str], answer: bytes) -> None:
    with connect(answering(answer)) as client, pytest.raises(Unsupported, match="need a Backline server"):
        client.set_label("add1", "stable", 1)
    with (
        connect(answering(answer)) as client,
        pytest.raises(Unsupported, match="does not support GET /v2/repository/history"),
    ):
        client.history()


@pytest.mark.parametrize(
    "listing",
    [http_answer("404 Not Found", b'{"error":"Not Found"}'), http_answer("200 OK", b'{"models":["add1"]}')],
)
def test_the_models_of_other_servers_come_from_the_index(
    answering: Callable[..., str], listing: bytes
) -> None:
    index = http_answer("200 OK", b'[{"name":"add1","version":"1","state":"READY"},{"name":"never"}]')
    with connect(answering(listing, index)) as client:
        first, second = client.models()
    assert (first.name, first.version, first.ready, first.labels) == ("add1", "1", True, ())
    assert (second.name, second.state, second.ready) == ("never", "", False)


@pytest.fixture
def grpc_only() -> Iterator[str]:
    """A server that answers only gRPC on its port, as Triton does."""
    grpc = pytest.importorskip("grpc")

    def answer(kind: str, **fields: object) -> object:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: message(f"inference.{kind}Response")(**fields),
            request_deserializer=message(f"inference.{kind}Request").FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers = {
        "ServerLive": answer("ServerLive", live=True),
        "RepositoryModelLoad": answer("RepositoryModelLoad"),
        "RepositoryIndex": answer(
            "RepositoryIndex", models=[{"name": "add1", "version": "1", "state": "READY"}]
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None)


def test_a_grpc_port_without_http_loads_models_and_lists_what_grpc_reports(grpc_only: str) -> None:
    with connect(grpc_only) as client:
        client.load("add1")
        (entry,) = client.models()
        assert (entry.name, entry.state, entry.ready) == ("add1", "READY", True)


def test_a_grpc_port_without_http_has_no_labels_and_says_what_to_do(grpc_only: str) -> None:
    with connect(grpc_only) as client:
        for _ in range(2):  # found out once, then remembered
            with pytest.raises(Unsupported, match="does not speak: use the server's http:// URL"):
                client.labels("add1")


def test_a_grpc_port_without_a_listener_is_a_failed_connection() -> None:
    with (
        connect(f"grpc://127.0.0.1:{free_ports(1)[0]}", connect_timeout=1) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.labels("add1")
