"""Client shared memory with stock clients: regions, tensors in them, and hostile clients."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.waiting import until

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)
SIZE = ROW.nbytes
SYSTEM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"


PYTHON = {
    "upper": """
import numpy as np
from backline.model import BYTES

class Model:
    def predict(self, texts: BYTES[-1]) -> BYTES[-1]:
        return np.array([text.upper() for text in texts], object)
""",
    "patient": """
import asyncio
from pathlib import Path
from backline.model import FP32

class Model:
    async def predict(self, x: FP32[-1], path: str) -> FP32[-1]:
        Path(path).with_suffix(".began").touch()
        while not Path(path).exists():
            await asyncio.sleep(0.01)
        return x + 1
""",
}
TWICE = """
platform: "ensemble" max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 16 ] } ]
ensemble_scheduling { step [
  {
    model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "X" } output_map { key: "OUTPUT0" value: "M" }
  },
  {
    model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "M" } output_map { key: "OUTPUT0" value: "Y" }
  }
] }
"""


@pytest.fixture(scope="module")
def memory_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that accepts shared memory, with add1, an ensemble of it, and models in worker processes."""
    repository = tmp_path_factory.mktemp("repository")
    models.add1(repository)
    put(repository / "twice" / "config.pbtxt", TWICE)
    for name, source in PYTHON.items():
        put(repository / name / "1" / "model.py", source)
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(repository, log, "--allow-client-shm=true", "--http-max-input-size", "1000000") as running:
        yield running


@pytest.fixture
def http(memory_server: ServerProcess) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(f"127.0.0.1:{memory_server.http_port}", concurrency=4) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def rpc(
    memory_server: ServerProcess, http: triton_http.InferenceServerClient
) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{memory_server.grpc_port}") as client:
        yield client


@pytest.fixture(params=["http", "rpc"])
def client(request: pytest.FixtureRequest) -> tuple[Any, ModuleType]:
    """The synchronous client of either protocol, and its module."""
    return request.getfixturevalue(request.param), triton_http if request.param == "http" else triton_grpc


@pytest.fixture
def created() -> Iterator[Callable[[int], tuple[Any, str]]]:
    """Creates shared memory objects, removed after the test; returns handle and key."""
    handles = []

    def create(size: int = SIZE) -> tuple[Any, str]:
        key = f"/backline-test-{uuid4().hex}"
        handles.append(shm.create_shared_memory_region(key, key, size))
        return handles[-1], key

    yield create
    for handle in handles:
        with suppress(shm.SharedMemoryException, FileNotFoundError):
            shm.destroy_shared_memory_region(handle)


@pytest.fixture
def registered(
    http: triton_http.InferenceServerClient, created: Callable[[int], tuple[Any, str]]
) -> tuple[Any, Any]:
    """The regions "in", which holds ROW, and "out": their handles."""
    handles = []
    for name in ("in", "out"):
        handle, key = created(SIZE)
        http.register_system_shared_memory(name, key, SIZE)
        handles.append(handle)
    shm.set_shared_memory_region(handles[0], [ROW])
    return handles[0], handles[1]


def path_of(handle: Any) -> Path:
    return Path("/dev/shm") / handle._mpsm_handle.name.lstrip("/")


def shared_input(
    module: ModuleType,
    region: str = "in",
    size: int = SIZE,
    offset: int = 0,
    name: str = "INPUT0",
    shape: tuple[int, ...] = (1, 16),
) -> Any:
    given = module.InferInput(name, list(shape), "FP32")
    given.set_shared_memory(region, size, offset)
    return given


def shared_output(
    module: ModuleType, region: str = "out", size: int = SIZE, offset: int = 0, name: str = "OUTPUT0"
) -> Any:
    wanted = module.InferRequestedOutput(name)
    wanted.set_shared_memory(region, size, offset)
    return wanted


def ask(server: ServerProcess, path: str, document: object = None) -> tuple[int, Any]:
    """Status and JSON of a GET, or of a POST with a document."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(server.url + path, body, method="GET" if body is None else "POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


# regions


def test_a_region_is_shown_until_it_is_unregistered(client, created) -> None:
    asked, module = client
    _, key = created(128)
    asked.register_system_shared_memory("one", key, 64, 32)
    asked.register_system_shared_memory("two", key, 128)
    options = {} if module is triton_http else {"as_json": True}
    if module is triton_http:
        assert asked.get_system_shared_memory_status() == [
            {"name": "one", "key": key, "offset": 32, "byte_size": 64},
            {"name": "two", "key": key, "offset": 0, "byte_size": 128},
        ]
        assert [entry["name"] for entry in asked.get_system_shared_memory_status("two")] == ["two"]
    else:
        regions = asked.get_system_shared_memory_status(**options)["regions"]
        assert regions["one"] == {"name": "one", "key": key, "offset": "32", "byte_size": "64"}
        assert list(asked.get_system_shared_memory_status("two", **options)["regions"]) == ["two"]
    asked.unregister_system_shared_memory("one")
    with pytest.raises(
        InferenceServerException, match="Unable to find system shared memory region: 'one'"
    ) as caught:
        asked.get_system_shared_memory_status("one")
    assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")
    asked.unregister_system_shared_memory()
    with pytest.raises(InferenceServerException, match="Unable to find"):
        asked.get_system_shared_memory_status("two")


def test_unregistering_an_unknown_region_succeeds(client) -> None:
    client[0].unregister_system_shared_memory("nobody")


def test_a_name_is_taken_once(client, created) -> None:
    asked, _ = client
    _, key = created(64)
    asked.register_system_shared_memory("mine", key, 64)
    with pytest.raises(
        InferenceServerException, match="shared memory region 'mine' already in manager"
    ) as caught:
        asked.register_system_shared_memory("mine", key, 64)
    assert caught.value.status() in ("400", "StatusCode.ALREADY_EXISTS")


@pytest.mark.parametrize(
    "key", ["/nobody-made-this", "", "/", "..", "../etc/passwd", "/../etc/passwd", "a/b", "\0", "x" * 300]
)
def test_key_without_an_object_is_refused(client, key: str) -> None:
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '") as caught:
        client[0].register_system_shared_memory("region", key, 64)
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_a_name_has_a_length_that_can_be_repeated(client, created) -> None:
    _, key = created(64)
    with pytest.raises(
        InferenceServerException,
        match="the name of a shared memory region has 300 characters, expected 1 to 255",
    ):
        client[0].register_system_shared_memory("n" * 300, key, 64)
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '//////"):
        client[0].register_system_shared_memory("slashes", "/" * 1000 + key, 64)


def test_key_of_a_special_file_is_refused(client, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    for make in (lambda path: path.symlink_to(secret), os.mkfifo, os.mkdir):
        path = Path("/dev/shm") / f"backline-test-{uuid4().hex}"
        make(path)
        try:
            with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '"):
                client[0].register_system_shared_memory("region", path.name, 64)
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_the_prefix_of_tritons_own_memory_is_refused(client) -> None:
    key = "triton_python_backend_shm_region__my_key"
    text = (
        f"cannot register shared memory region 'mine' with key '{key}' as the key contains the "
        "reserved prefix"
        " 'triton_python_backend_shm_region_'"
    )
    with pytest.raises(InferenceServerException, match=text):
        client[0].register_system_shared_memory("mine", key, 10000)


@pytest.mark.parametrize(("size", "offset"), [(65, 0), (64, 1), (1, 64), (0, 0), (2**62, 2**62)])
def test_a_region_outside_of_its_object_is_refused(client, created, size: int, offset: int) -> None:
    _, key = created(64)
    with pytest.raises(
        InferenceServerException,
        match=r"Invalid shared memory region: '.*': 'large' cannot be|region 'large': invalid args",
    ):
        client[0].register_system_shared_memory("large", key, size, offset)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"byte_size": 64}, "Shared memory register request has no 'key' field"),
        ({"key": "/x"}, "Shared memory register request has no 'byte_size' field"),
        ({"key": "/x", "byte_size": -1}, "byte_size"),
        ({"key": "/x", "byte_size": "x"}, "byte_size"),
        ({"key": 3, "byte_size": 64}, "key"),
        ({"key": "/x", "byte_size": 64, "ofset": 1}, "Did you mean 'offset'?"),
    ],
)
def test_error_names_the_fault_of_a_register_request(
    memory_server: ServerProcess, document: dict, text: str
) -> None:
    status, answer = ask(memory_server, f"{SYSTEM}/region/wrong/register", document)
    assert (status, text in answer["error"]) == (400, True), answer


def test_number_of_regions_is_limited(http: triton_http.InferenceServerClient, rpc, created) -> None:
    _, key = created(64)
    for number in range(1000):
        rpc.register_system_shared_memory(f"r{number}", key, 64)
    with pytest.raises(InferenceServerException, match="there are 1000 shared memory regions, the maximum"):
        rpc.register_system_shared_memory("r1000", key, 64)
    http.unregister_system_shared_memory()
    rpc.register_system_shared_memory("r1000", key, 64)


def test_cuda_memory_is_refused(client) -> None:
    asked, module = client
    with pytest.raises(
        InferenceServerException,
        match="failed to register CUDA shared memory region: 'gpu', GPUs not supported",
    ):
        asked.register_cuda_shared_memory("gpu", b64encode(bytes(64)), 0, 64)
    status = asked.get_cuda_shared_memory_status()
    assert (status == []) if module is triton_http else not status.regions
    with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory region: 'gpu'"):
        asked.get_cuda_shared_memory_status("gpu")
    asked.unregister_cuda_shared_memory()


def test_the_metadata_names_the_extension(client) -> None:
    asked, module = client
    metadata = asked.get_server_metadata()
    extensions = metadata["extensions"] if module is triton_http else metadata.extensions
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions


# inference


def test_inputs_and_outputs_lie_in_regions(client, registered) -> None:
    asked, module = client
    for step in range(3):  # the plans of the second and third are cached
        shm.set_shared_memory_region(registered[0], [ROW + step])
        result = asked.infer("add1", [shared_input(module)], outputs=[shared_output(module)])
        output = result.get_output("OUTPUT0")
        assert output is not None
        np.testing.assert_array_equal(
            shm.get_contents_as_numpy(registered[1], np.float32, [1, 16]), ROW + step + 1
        )


def test_the_response_has_neither_data_nor_size(memory_server: ServerProcess, registered) -> None:
    place = {"shared_memory_region": "in", "shared_memory_byte_size": SIZE}
    given = [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "parameters": place}]
    wanted = [{"name": "OUTPUT0", "parameters": {**place, "shared_memory_region": "out"}}]
    answer = ask(
        memory_server,
        "/v2/models/add1/infer",
        {"inputs": given, "outputs": wanted},
    )
    assert answer == (
        200,
        {
            "model_name": "add1",
            "model_version": "1",
            "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 16]}],
        },
    )


def test_only_the_input_lies_in_a_region(client, registered) -> None:
    asked, module = client
    for _ in range(2):
        result = asked.infer("add1", [shared_input(module)])
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROW + 1)


def test_only_the_output_lies_in_a_region(client, registered) -> None:
    asked, module = client
    given = module.InferInput("INPUT0", [1, 16], "FP32")
    given.set_data_from_numpy(ROW * 3)
    for _ in range(2):
        asked.infer("add1", [given], outputs=[shared_output(module)])
        np.testing.assert_array_equal(
            shm.get_contents_as_numpy(registered[1], np.float32, [1, 16]), ROW * 3 + 1
        )


def test_an_offset_counts_from_the_region_and_the_region_from_its_object(client, created) -> None:
    asked, module = client
    handle, key = created(256)
    shm.set_shared_memory_region(handle, [ROW], 32 + 16)
    asked.register_system_shared_memory("part", key, 224, 32)
    asked.infer(
        "add1", [shared_input(module, "part", offset=16)], outputs=[shared_output(module, "part", offset=128)]
    )
    np.testing.assert_array_equal(shm.get_contents_as_numpy(handle, np.float32, [1, 16], 32 + 128), ROW + 1)


def test_one_input_in_a_region_and_another_in_the_message(client, registered, tmp_path: Path) -> None:
    asked, module = client
    (tmp_path / "go").touch()
    for order in (1, -1):
        text = module.InferInput("path", [1], "BYTES")
        text.set_data_from_numpy(np.array([str(tmp_path / "go").encode()], object))
        inputs = [shared_input(module, name="x", shape=(16,)), text][::order]
        for _ in range(2):
            np.testing.assert_array_equal(asked.infer("patient", inputs).as_numpy("output"), ROW[0] + 1)


def test_texts_lie_in_regions(client, created) -> None:
    asked, module = client
    words = np.array([b"one", b"", "zw\u00f6lf".encode()], object)
    data = serialize_byte_tensor(words).item()
    (given, key), (wanted, other) = created(len(data)), created(64)
    shm.set_shared_memory_region(given, [serialize_byte_tensor(words)])
    asked.register_system_shared_memory("words", key, len(data))
    asked.register_system_shared_memory("upper", other, 64)
    texts = module.InferInput("texts", [3], "BYTES")
    texts.set_shared_memory("words", len(data))
    asked.infer("upper", [texts], outputs=[shared_output(module, "upper", 64, name="output")])
    assert list(shm.get_contents_as_numpy(wanted, np.object_, [3])) == [word.upper() for word in words]


def test_an_ensemble_reads_and_writes_regions(client, registered) -> None:
    asked, module = client
    asked.infer("twice", [shared_input(module, name="X")], outputs=[shared_output(module, name="Y")])
    np.testing.assert_array_equal(shm.get_contents_as_numpy(registered[1], np.float32, [1, 16]), ROW + 2)


def test_the_asyncio_clients(memory_server: ServerProcess, registered) -> None:
    async def run() -> None:
        for module, port in (
            (triton_http_aio, memory_server.http_port),
            (triton_grpc_aio, memory_server.grpc_port),
        ):
            async with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
                shm.set_shared_memory_region(registered[1], [np.zeros_like(ROW)])
                await client.infer("add1", [shared_input(module)], outputs=[shared_output(module)])
                np.testing.assert_array_equal(
                    shm.get_contents_as_numpy(registered[1], np.float32, [1, 16]), ROW + 1
                )
                assert await client.get_system_shared_memory_status()

    asyncio.run(run())


def test_a_grpc_stream(rpc: triton_grpc.InferenceServerClient, registered) -> None:
    answers: queue.Queue = queue.Queue()
    rpc.start_stream(callback=lambda result, error: answers.put((result, error)))
    rpc.async_stream_infer("add1", [shared_input(triton_grpc)], outputs=[shared_output(triton_grpc)])
    rpc.async_stream_infer(
        "add1", [shared_input(triton_grpc)], outputs=[shared_output(triton_grpc, "nobody")]
    )
    first, second = answers.get(timeout=30), answers.get(timeout=30)
    rpc.stop_stream()
    assert first[1] is None
    assert "Unable to find shared memory region: 'nobody'" in str(second[1])
    np.testing.assert_array_equal(shm.get_contents_as_numpy(registered[1], np.float32, [1, 16]), ROW + 1)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({"region": "nobody"}, "Unable to find shared memory region: 'nobody'"),
        ({"size": 2 * SIZE}, "Invalid offset \\+ byte size for shared memory region: 'in'"),
        ({"offset": 4}, "Invalid offset \\+ byte size for shared memory region: 'in'"),
        ({"size": 0}, "Invalid offset \\+ byte size for shared memory region: 'in'"),
        ({"offset": SIZE}, "Invalid offset for shared memory region: 'in'"),
        (
            {"size": SIZE // 2},
            "input byte size mismatch for input 'INPUT0' for model 'add1'. Expected 64, got 32",
        ),
    ],
)
def test_an_input_outside_of_its_region_is_refused(client, registered, place: dict, text: str) -> None:
    asked, module = client
    with pytest.raises(InferenceServerException, match=text):
        asked.infer("add1", [shared_input(module, **place)], outputs=[shared_output(module)])


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({"region": "nobody"}, "Unable to find shared memory region: 'nobody'"),
        ({"size": 2 * SIZE}, "Invalid offset \\+ byte size for shared memory region: 'out'"),
        ({"offset": SIZE}, "Invalid offset for shared memory region: 'out'"),
        (
            {"size": 1},
            (
                "specified with the request for output 'OUTPUT0' \\(1 bytes\\) should be at least 64 bytes "
                "to hold the results"
            ),
        ),
    ],
)
def test_an_output_that_does_not_fit_its_place_is_refused(client, registered, place: dict, text: str) -> None:
    asked, module = client
    with pytest.raises(InferenceServerException, match=text):
        asked.infer("add1", [shared_input(module)], outputs=[shared_output(module, **place)])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"data": [0] * 16}, "But set 'data' 'shared_memory_region' (input 'INPUT0')"),
        (
            {"parameters": {"binary_data_size": 64}},
            "But set 'binary_data_size' 'shared_memory_region' (input 'INPUT0')",
        ),
        (
            {"parameters": {"shared_memory_byte_size": "64"}},
            "parameter 'shared_memory_byte_size' of input 'INPUT0' must be a number of bytes",
        ),
        (
            {"parameters": {"shared_memory_offset": -1}},
            "parameter 'shared_memory_offset' of input 'INPUT0' must be a number of bytes",
        ),
        (
            {"parameters": {"shared_memory_region": 1}},
            "parameter 'shared_memory_region' of input 'INPUT0' must be a string",
        ),
    ],
)
def test_error_names_the_fault_of_a_tensors_location(
    memory_server: ServerProcess, registered, given: dict, text: str
) -> None:
    place = {"shared_memory_region": "in", "shared_memory_byte_size": SIZE, **given.pop("parameters", {})}
    document = {
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "parameters": place, **given}]
    }
    status, answer = ask(memory_server, "/v2/models/add1/infer", document)
    assert (status, text in answer["error"]) == (400, True), answer


@pytest.mark.parametrize(("key", "value"), [("binary_data", True), ("classification", 2)])
def test_an_output_in_a_region_is_neither_binary_nor_classified(
    memory_server: ServerProcess, registered, key: str, value: object
) -> None:
    place = {"shared_memory_region": "out", "shared_memory_byte_size": SIZE, key: value}
    given = [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": ROW[0].tolist()}]
    status, answer = ask(
        memory_server,
        "/v2/models/add1/infer",
        {"inputs": given, "outputs": [{"name": "OUTPUT0", "parameters": place}]},
    )
    assert status == 400
    assert f"Output can't set both 'shared_memory_region' and '{key}'" in answer["error"]


# regions in use, and hostile clients


def begin(http: triton_http.InferenceServerClient, go: Path) -> Any:
    """A request that is running, and ends once the file exists."""
    path = triton_http.InferInput("path", [1], "BYTES")
    path.set_data_from_numpy(np.array([str(go).encode()], object))
    inputs = [shared_input(triton_http, name="x", shape=(16,)), path]
    answer = http.async_infer("patient", inputs, outputs=[shared_output(triton_http, name="output")])
    until(lambda: go.with_suffix(".began").exists())
    return answer


def names(http: triton_http.InferenceServerClient) -> set[str]:
    return {entry["name"] for entry in http.get_system_shared_memory_status()}


def test_a_region_in_use_is_unregistered_after_the_inference(
    http, rpc, registered, created, tmp_path: Path
) -> None:
    answer = begin(http, tmp_path / "first")
    rpc.unregister_system_shared_memory()
    assert names(http) == {"in", "out"}
    with pytest.raises(InferenceServerException, match="already in manager"):
        rpc.register_system_shared_memory("in", created()[1], SIZE)
    second = begin(http, tmp_path / "second")
    (tmp_path / "first").touch()
    answer.get_result()
    assert names(http) == {"in", "out"}
    shm.set_shared_memory_region(registered[1], [np.zeros_like(ROW)])
    (tmp_path / "second").touch()
    second.get_result()
    np.testing.assert_array_equal(shm.get_contents_as_numpy(registered[1], np.float32, [16]), ROW[0] + 1)
    assert names(http) == set()


def test_a_cancelled_request_lets_go_of_its_regions(http, rpc, registered, tmp_path: Path) -> None:
    path = triton_grpc.InferInput("path", [1], "BYTES")
    path.set_data_from_numpy(np.array([str(tmp_path / "never").encode()], object))
    inputs = [shared_input(triton_grpc, name="x", shape=(16,)), path]
    call = rpc.async_infer(
        "patient", inputs, lambda result, error: None, outputs=[shared_output(triton_grpc, name="output")]
    )
    until((tmp_path / "never.began").exists)
    rpc.unregister_system_shared_memory("out")
    assert names(http) == {"in", "out"}
    call.cancel()
    until(lambda: names(http) == {"in"})


def test_a_failed_request_lets_go_of_its_regions(client, http, registered) -> None:
    asked, module = client
    with pytest.raises(InferenceServerException):
        asked.infer("add1", [shared_input(module, shape=(2, 8))], outputs=[shared_output(module)])
    http.unregister_system_shared_memory()
    assert names(http) == set()


def test_an_object_that_was_made_smaller_is_an_error(client, http, registered) -> None:
    asked, module = client
    shrunk = "shared memory region '{}' has shrunk since it was registered"
    os.truncate(path_of(registered[0]), 32)
    with pytest.raises(InferenceServerException, match=shrunk.format("in")):
        asked.infer("add1", [shared_input(module)])
    os.truncate(path_of(registered[0]), SIZE)
    os.truncate(path_of(registered[1]), 32)
    with pytest.raises(InferenceServerException, match=shrunk.format("out")):
        asked.infer("add1", [shared_input(module)], outputs=[shared_output(module)])
    assert os.stat(path_of(registered[1])).st_size == 32
    os.truncate(path_of(registered[1]), SIZE)
    asked.infer("add1", [shared_input(module)], outputs=[shared_output(module)])
    assert http.is_server_ready()


def test_an_object_that_shrinks_and_grows_all_the_time_kills_nobody(http, rpc, registered) -> None:
    script = (
        "import os, sys\nwhile True:\n for path in sys.argv[1:]:\n"
        "  os.truncate(path, 0); os.truncate(path, 64)\n"
    )
    paths = [str(path_of(handle)) for handle in registered]
    with subprocess.Popen([sys.executable, "-c", script, *paths]) as harming:
        for _ in range(300):
            with suppress(InferenceServerException):
                rpc.infer("add1", [shared_input(triton_grpc)], outputs=[shared_output(triton_grpc)])
        harming.kill()
    for path in paths:
        os.truncate(path, SIZE)
    http.infer("add1", [shared_input(triton_http)], outputs=[shared_output(triton_http)])


def test_shared_memory_inputs_count_towards_the_request_limit(client, created) -> None:
    asked, module = client
    _, key = created(1_200_000)
    asked.register_system_shared_memory("large", key, 1_200_000)
    with pytest.raises(
        InferenceServerException, match="1200000 bytes in shared memory, more than the 1000000"
    ) as caught:
        asked.infer("add1", [shared_input(module, "large", 1_200_000, shape=(18750, 16))])
    assert caught.value.status() in ("413", "StatusCode.RESOURCE_EXHAUSTED")


def test_large_tensors_are_copied_off_the_event_loop(tmp_path: Path, created) -> None:
    models.add1(tmp_path / "models")
    rows = np.random.default_rng(0).standard_normal((100_000, 16)).astype(np.float32)
    handles = [created(rows.nbytes) for _ in range(2)]
    shm.set_shared_memory_region(handles[0][0], [rows])
    with serve(tmp_path / "models", tmp_path / "log", "--allow-client-shm=true") as running:
        for module, port in ((triton_http, running.http_port), (triton_grpc, running.grpc_port)):
            shm.set_shared_memory_region(handles[1][0], [np.zeros_like(rows)])
            with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
                for name, (_, key) in zip(("in", "out"), handles, strict=True):
                    client.register_system_shared_memory(name, key, rows.nbytes)
                given = shared_input(module, size=rows.nbytes, shape=rows.shape)
                client.infer("add1", [given], outputs=[shared_output(module, size=rows.nbytes)])
                np.testing.assert_array_equal(
                    shm.get_contents_as_numpy(handles[1][0], np.float32, rows.shape), rows + 1
                )
                with pytest.raises(
                    InferenceServerException, match="Unable to find shared memory region: 'nobody'"
                ):
                    client.infer("add1", [given], outputs=[shared_output(module, "nobody")])
                os.truncate(path_of(handles[0][0]), 100)
                with pytest.raises(InferenceServerException, match="has shrunk since it was registered"):
                    client.infer("add1", [given], outputs=[shared_output(module, size=rows.nbytes)])
                os.truncate(path_of(handles[0][0]), rows.nbytes)
                shm.set_shared_memory_region(handles[0][0], [rows])
                client.unregister_system_shared_memory()
                status = client.get_system_shared_memory_status()
                assert not (status if module is triton_http else status.regions)


def test_without_permission_everything_says_how_to_get_it(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    disabled = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    place = {"shared_memory_region": "in", "shared_memory_byte_size": SIZE}
    given = [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16]}]
    with serve(tmp_path / "models", tmp_path / "server.log") as running:
        for base in (SYSTEM, CUDA):
            assert ask(running, f"{base}/status") == (501, {"error": disabled})
            assert ask(running, f"{base}/region/one/status") == (501, {"error": disabled})
            assert ask(running, f"{base}/region/one/register", {}) == (501, {"error": disabled})
            assert ask(running, f"{base}/unregister", {}) == (501, {"error": disabled})
        assert ask(running, "/v2/models/add1/infer", {"inputs": [{**given[0], "parameters": place}]}) == (
            501,
            {"error": disabled},
        )
        assert "system_shared_memory" not in ask(running, "/v2")[1]["extensions"]
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as rpc:
            for call in (
                rpc.get_system_shared_memory_status,
                rpc.unregister_system_shared_memory,
                lambda: rpc.register_system_shared_memory("one", "/one", 64),
                lambda: rpc.infer("add1", [shared_input(triton_grpc)]),
            ):
                with pytest.raises(InferenceServerException, match=disabled) as caught:
                    call()
                assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
