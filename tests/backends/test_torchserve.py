"""TorchServe archives, made by its own archiver: handlers answer as in TorchServe, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import backline
from backline.backends.backend import LoadOptions
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.loader import load
from backline.plugins.runtimes.pytorch.files import identify
from backline.repository.unpacked import unpacked
from backline.system.archive_limits import UnpackLimits
from backline_client.system.file_lock import hold
from backline_client.values.errors import BacklineError, InvalidArgument
from docs.pages import blocks
from support.repositories import put
from support.server import ServerProcess, serve

pytestmark = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("model_archiver") is None, reason="no torch or no archiver"
)

#: As local files are loaded.
TRUSTED = LoadOptions(may_run_code=True)
FUNCTION = """
import json

def handle(data, context):
    if data is None:
        return
    name = context.get_request_id(0)
    return [{"keys": sorted(row), "type": type(row["body"]).__name__, "id": name} for row in data]
"""
CLASS = """
import os
from ts.context import Context
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException


class Handler:
    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]
        self.batches = 0
        self.greeting = context.model_yaml_config["handler"]["greeting"]
        self.counter = context.metrics.add_metric_to_cache("Greeted", "count", ["Kind"], MetricTypes.COUNTER)

    def handle(self, data, context):
        context.metrics.add_time("Thinking", 1.5, unit="ms", dimensions=[Dimension("Kind", "x")])
        self.counter.add_or_update(1, ["x"])
        self.batches += 1
        answers = []
        for index, row in enumerate(data):
            text = row["body"].decode()
            if text == "bad":
                raise PredictionException("a bad request", 400)
            if text == "broken":
                raise KeyError("it broke")
            if text == "few":
                return []
            if text == "teapot":
                context.set_response_status(404, "no such tea", index)
            context.set_response_header(index, "x-length", str(len(text)))
            extra = open(os.path.join(self.folder, "extra.txt")).read().strip()
            who = context.get_request_header(index, "USER")
            answers.append({"text": f"{self.greeting} {text}{extra}", "batch": len(data), "who": who})
        return answers
"""
BASE = """
import json
import torch
from ts.torch_handler.base_handler import BaseHandler


class Doubler(BaseHandler):
    def preprocess(self, data):
        given = (row["data"] for row in data)
        return super().preprocess([json.loads(one) if isinstance(one, bytes) else one for one in given])
"""
SETTINGS = """
minWorkers: 1
batchSize: 8
maxBatchDelay: 300
responseTimeout: 20
parallelType: pp
handler:
  greeting: Hello
"""
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.scale
"""
STREAM = """
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return
    words = data[0]["data"].decode().split()
    for word in words[:-1]:
        send_intermediate_predict_response([word], context.request_ids, "Intermediate", 200, context)
    return [words[-1]]
"""
ENVELOPED = """
def handle(data, context):
    if data is None:
        return None
    return [row.get("x", row.get("data")) if isinstance(row, dict) else row for row in data]
"""
PACED = """
import time

def handle(data, context):
    if data is None:
        return
    if data[0]["body"] == b"sleep":
        time.sleep(1000)
    return [str(len(data))] * len(data)
"""
#: Longer than any test waits: a batch only runs when it is full.
JOINED = "batchSize: 4\nmaxBatchDelay: 100000\n"
LATE = "minWorkers: 2\nmaxWorkers: 4\nresponseTimeout: 1\n"
LABELS = {str(number): [f"n{number}", f"class {number}"] for number in range(10)}


def archive(folder: Path, name: str, handler: str, *, format: str = "default", **options: str | Path) -> Path:
    """The archive that `torch-model-archiver` makes, with further options."""
    from model_archiver.model_archiver import ModelArchiver
    from model_archiver.model_archiver_config import ModelArchiverConfig

    given = {key: str(value) for key, value in options.items()}
    asked = ModelArchiverConfig(
        name, handler, "1.0", export_path=str(folder), archive_format=format, force=True, **given
    )
    ModelArchiver.generate_model_archive(asked)
    return (
        folder / name
        if format == "no-archive"
        else folder / f"{name}.{'tar.gz' if format == 'tgz' else 'mar'}"
    )


def script(path: Path, module: Any) -> Path:
    import torch

    torch.jit.script(module.eval()).save(str(path))
    return path


def place(made: Path, repository: Path, name: str) -> None:
    version = repository / name / "1"
    if made.is_dir():
        version.parent.mkdir(parents=True)
        made.rename(version)
    else:
        version.mkdir(parents=True)
        made.rename(version / ("model.tar.gz" if made.name.endswith(".tar.gz") else made.name))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    import torch

    made, models = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("models")
    function, base, net = (
        put(made / "function.py", FUNCTION),
        put(made / "base.py", BASE),
        put(made / "net.py", NET),
    )
    for name, format in (
        ("function", "default"),
        ("cats", "default"),
        ("function_tgz", "tgz"),
        ("function_folder", "no-archive"),
    ):
        place(archive(made, name, str(function), format=format), models, name)
    settings = put(made / "model-config.yaml", SETTINGS)
    extra = put(made / "extra.txt", "!\n")
    for name in ("class", "once"):
        handler = str(put(made / "class_handler.py", CLASS))
        place(archive(made, name, handler, config_file=settings, extra_files=extra), models, name)
    put(
        models / "once" / "config.pbtxt",
        'backend: "torchserve" parameters { key: "backline.idempotent" value { string_value: "false" } }',
    )
    weights = made / "net.pth"
    torch.save({"scale": torch.tensor(3.0)}, weights)
    place(archive(made, "eager", str(base), model_file=net, serialized_file=weights), models, "eager")

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    place(
        archive(made, "twice", str(base), serialized_file=script(made / "twice.pt", Twice())), models, "twice"
    )
    program = made / "twice.pt2"
    torch.export.save(torch.export.export(Twice(), (torch.ones(1, 3),)), program)
    place(archive(made, "program", str(base), serialized_file=program), models, "program")
    for name, policy in (("stream", "model_transaction_policy { decoupled: True }\n"), ("no_stream", "")):
        place(archive(made, name, str(put(made / "stream.py", STREAM))), models, name)
        put(models / name / "config.pbtxt", f'backend: "torchserve"\n{policy}')
    for envelope in ("json", "kserve", "kservev2", "body"):
        place(archive(made, envelope, str(put(made / "enveloped.py", ENVELOPED))), models, envelope)
        put(
            models / envelope / "config.pbtxt",
            f'backend: "torchserve" parameters {{ key: "service_envelope" value {{ string_value:'
            f' "{envelope}" }} }}\n',
        )
    with serve(
        models, tmp_path_factory.mktemp("log") / "log", environment={"XDG_CACHE_HOME": str(made / "cache")}
    ) as running:
        yield running


def ask(server: ServerProcess, model: str, data: str | bytes, **parameters: Any) -> Any:
    """The JSON with which a handler answers one body."""
    body = data.encode() if isinstance(data, str) else data
    with backline.connect(server.grpc_url) as client:
        shape = [1] * len(client[model].metadata().inputs[0].shape)
        result = client[model](np.array([body], object).reshape(shape), parameters=parameters or None)
    return json.loads(result["output"].reshape(-1)[0])


@pytest.mark.parametrize("name", ["function", "function_tgz", "function_folder"])
def test_a_function_in_each_kind_of_archive(archives: ServerProcess, name: str) -> None:
    answer = ask(archives, name, "x")

    assert answer["keys"] == ["body", "data"]
    assert answer["type"] == "bytes"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [("application/json; charset=utf-8", "dict"), ("text/plain", "str"), ("image/png", "bytes")],
)
def test_the_content_type_decides_what_a_handler_gets(
    archives: ServerProcess, content_type: str, kind: str
) -> None:
    assert ask(archives, "function", "{}", **{"Content-Type": content_type})["type"] == kind


def test_a_body_that_is_not_of_its_content_type_is_refused(archives: ServerProcess) -> None:
    with pytest.raises(BacklineError, match="input 'data' is not application/json") as caught:
        ask(archives, "function", "{", **{"content-type": "application/json"})
    assert caught.value.http_status == 400


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_requests_of_the_page_are_answered(archives: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8 no text")
    (shown,) = (block.text for block in blocks("docs/torchserve.md") if block.language == "console")
    commands = [
        line.removeprefix("$ ").replace("localhost:8000", f"localhost:{archives.http_port}")
        for line in shown.splitlines()
    ]

    predicted, _, generated = (
        subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
        for line in commands
    )

    assert json.loads(predicted)["keys"] == ["body"]
    assert b'"type": "bytes"' in (tmp_path / "answer.bin").read_bytes()
    assert json.loads(json.loads(generated)["output"])["type"] == "dict"


def test_generate_asks_a_handler(archives: ServerProcess) -> None:
    body = json.dumps({"data": "x", "content-type": "text/plain"}).encode()
    with urllib.request.urlopen(f"{archives.url}/v2/models/function/generate", body) as answer:
        assert json.loads(json.loads(answer.read())["output"])["type"] == "str"


def test_a_class_with_settings_extra_files_and_headers(archives: ServerProcess) -> None:
    assert ask(archives, "class", "Ada", User="ada") == {"text": "Hello Ada!", "batch": 1, "who": "ada"}


def test_rows_of_a_request_are_a_batch_with_response_headers(archives: ServerProcess) -> None:
    with backline.connect(archives.url) as client:
        result = client["class"](np.array([[b"a"], [b"bcd"]], object))

    answers = [json.loads(one) for one in result["output"].reshape(-1)]
    assert [(answer["text"], answer["batch"]) for answer in answers] == [("Hello a!", 2), ("Hello bcd!", 2)]
    assert result.parameters == {"x-length": "1"}


def test_batch_delay_workers_and_timeout_are_those_of_the_archive(tmp_path: Path) -> None:
    made, models = tmp_path / "made", tmp_path / "models"
    handler = str(put(made / "paced.py", PACED))
    for name, settings in (("joined", JOINED), ("late", LATE)):
        place(
            archive(made, name, handler, config_file=put(made / "model-config.yaml", settings)), models, name
        )

    async def together() -> list[Any]:
        async with backline.connect_async(server.url, timeout=15) as client:
            return await asyncio.gather(*(client["joined"](np.array([[b"x"]], object)) for _ in range(4)))

    with serve(models, tmp_path / "log", environment={"XDG_CACHE_HOME": str(made / "cache")}) as server:
        assert len(psutil.Process(server.process.pid).children()) == 3  # of joined 1, of late 2
        assert [result["output"].item() for result in asyncio.run(together())] == [b"4"] * 4
        with pytest.raises(BacklineError, match="did not finish within 1 s"):
            ask(server, "late", "sleep")


def test_requests_at_the_same_time_are_a_batch(archives: ServerProcess) -> None:
    async def together() -> list[Any]:
        async with backline.connect_async(archives.grpc_url) as client:
            return await asyncio.gather(*(client["class"](np.array([[b"x"]], object)) for _ in range(8)))

    batches = [json.loads(result["output"].reshape(-1)[0])["batch"] for result in asyncio.run(together())]
    assert max(batches) > 1


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        ("bad", 400, "a bad request"),
        ("broken", 500, "KeyError: 'it broke'"),
        ("few", 500, "the handler returned 0 results for 1 rows"),
        ("teapot", 404, "no such tea"),
    ],
)
def test_the_error_of_a_handler_is_reported(
    archives: ServerProcess, data: str, status: int, text: str
) -> None:
    with pytest.raises(BacklineError, match=text) as caught:
        ask(archives, "class", data)
    assert caught.value.http_status == status


async def together(server: ServerProcess, model: str) -> list[Any]:
    """The outcomes of three requests, the second of which is bad."""
    async with backline.connect_async(server.grpc_url) as client:
        calls = [client[model](np.array([[text]], object)) for text in (b"x", b"bad", b"y")]
        return await asyncio.gather(*calls, return_exceptions=True)


def test_a_bad_request_fails_alone_in_its_batch(archives: ServerProcess) -> None:
    x, bad, y = asyncio.run(together(archives, "class"))
    assert json.loads(x["output"].item())["text"] == "Hello x!"
    assert isinstance(bad, BacklineError)
    assert json.loads(y["output"].item())["text"] == "Hello y!"


def test_a_failed_batch_of_a_handler_that_is_not_idempotent_is_not_run_again(archives: ServerProcess) -> None:
    for _ in range(50):  # on a busy machine, the requests may arrive too far apart for one batch
        x, _, y = asyncio.run(together(archives, "once"))
        if isinstance(x, BacklineError) or isinstance(y, BacklineError):
            return
    raise AssertionError("the good requests in a batch with a bad one were run again")


def test_settings_without_effect_are_reported(archives: ServerProcess) -> None:
    assert "model-config.yaml: parallelType has no effect: a model runs in one process" in archives.output


@pytest.mark.parametrize(("name", "factor"), [("eager", 3), ("twice", 2), ("program", 2)])
def test_a_subclass_of_base_handler(archives: ServerProcess, name: str, factor: int) -> None:
    assert ask(archives, name, "[1.0, 2.5, -3.0]") == [factor * 1.0, factor * 2.5, factor * -3.0]


@pytest.mark.parametrize(
    ("name", "body", "answer"),
    [
        ("json", {"instances": [{"x": 1}, {"x": 2}]}, {"predictions": [1, 2]}),
        ("kserve", {"instances": [{"x": 1}, {"x": 2}]}, {"predictions": [1, 2]}),
        (
            "kservev2",
            {"id": "7", "inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]},
            {
                "id": "7",
                "model_name": "kservev2",
                "model_version": "1.0",
                "outputs": [{"name": "a", "datatype": "FP64", "shape": [2], "data": [1.0, 2.0]}],
            },
        ),
        ("body", [1, 2], [1, 2]),
    ],
)
def test_envelopes(archives: ServerProcess, name: str, body: Any, answer: Any) -> None:
    assert (
        ask(
            archives,
            name,
            json.dumps(body),
            **({"content-type": "application/json"} if name == "body" else {}),
        )
        == answer
    )


def test_responses_before_the_last_one_are_a_stream(archives: ServerProcess) -> None:
    with backline.connect(archives.grpc_url) as client:
        parts = [part["output"][0] for part in client["stream"].stream(np.array([b"one two three"], object))]
    assert parts == [b"one", b"two", b"three"]


def test_a_stream_ends_with_the_handlers_error(archives: ServerProcess) -> None:
    with backline.connect(archives.grpc_url) as client, pytest.raises(BacklineError, match="IndexError"):
        list(client["stream"].stream(np.array([b""], object)))


def test_a_streaming_model_without_decoupled_says_what_to_set(archives: ServerProcess) -> None:
    with pytest.raises(BacklineError, match=r"set model_transaction_policy { decoupled: True }"):
        ask(archives, "no_stream", "one two")


# built-in handlers


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """Archives that name a built-in handler, and the folder with their models."""
    pytest.importorskip("torchvision")
    import torch

    made, models = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("models")
    torch.manual_seed(0)

    class Segmenter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.layer(x)}

    class Detector(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            found: list[dict[str, torch.Tensor]] = []
            for image in images:
                box = torch.tensor([[0.0, 0.0, float(image.shape[2]), float(image.shape[1])]]).repeat(2, 1)
                found.append(
                    {"boxes": box, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.1])}
                )
            return found

    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.EmbeddingBag(8, 2)

        def forward(self, text: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return self.embedding(text, offsets)

    names = put(made / "index_to_name.json", json.dumps(LABELS))
    words = ["i", "do", "not", "like", "i do", "do not", "not like"]
    torch.save({word: number for number, word in enumerate(words)}, made / "source_vocab.pt")
    classifier = torch.nn.Sequential(
        torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(3 * 7 * 7, 10)
    )
    for name, module, extra in (
        ("image_classifier", classifier, str(names)),
        ("image_segmenter", Segmenter(), ""),
        ("object_detector", Detector(), str(names)),
        ("text_classifier", Words(), str(made / "source_vocab.pt")),
    ):
        options = {"extra_files": extra} if extra else {}
        place(
            archive(made, name, name, serialized_file=script(made / f"{name}.pt", module), **options),
            models,
            name,
        )
    with serve(models, made / "log", environment={"XDG_CACHE_HOME": str(made / "cache")}) as running:
        yield running, made


CAT = (
    Path(find_spec("skimage").origin or "").parent / "data" / "chelsea.png"
    if find_spec("skimage")
    else Path()
)


def prepared(size: int = 224) -> Any:
    """The photo of a cat, prepared as by the built-in handlers."""
    from PIL import Image
    from torchvision import transforms

    steps = [transforms.Resize(256), transforms.CenterCrop(size), transforms.ToTensor()]
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return transforms.Compose([*steps, normalize])(Image.open(CAT).convert("RGB"))[None]


def test_the_image_classifier_names_the_best_classes(built_in: tuple[ServerProcess, Path]) -> None:
    import torch

    server, made = built_in
    answer = ask(server, "image_classifier", CAT.read_bytes())

    probabilities = torch.softmax(torch.jit.load(made / "image_classifier.pt")(prepared()), 1)[0]
    best = torch.topk(probabilities, 5)
    assert list(answer) == [f"class {number}" for number in best.indices.tolist()]
    np.testing.assert_allclose(list(answer.values()), best.values.tolist(), rtol=1e-5)


def test_the_image_segmenter_gives_the_class_of_each_pixel(built_in: tuple[ServerProcess, Path]) -> None:
    import torch

    server, made = built_in
    answer = np.array(ask(server, "image_segmenter", CAT.read_bytes()))

    best = torch.softmax(torch.jit.load(made / "image_segmenter.pt")(prepared())["out"], 1).max(1)
    assert answer.shape == (224, 224, 2)
    np.testing.assert_array_equal(answer[..., 0], best.indices[0].numpy())
    np.testing.assert_allclose(answer[..., 1], best.values[0].detach().numpy(), rtol=1e-5)


def test_the_object_detector_gives_boxes_above_its_threshold(built_in: tuple[ServerProcess, Path]) -> None:
    assert ask(built_in[0], "object_detector", CAT.read_bytes()) == [
        {"class 1": [0.0, 0.0, 451.0, 300.0], "score": pytest.approx(0.9)}
    ]


def test_the_text_classifier_reads_words_and_pairs_of_words(built_in: tuple[ServerProcess, Path]) -> None:
    import torch

    server, made = built_in
    answer = ask(server, "text_classifier", "<b>I</b> don't l\u00edke!")

    numbers = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    expected = torch.softmax(torch.jit.load(made / "text_classifier.pt")(numbers, torch.tensor([0])), 1)[
        0
    ].tolist()
    np.testing.assert_allclose([answer["0"], answer["1"]], expected, rtol=1e-5)


# environments and debugging


@pytest.mark.skipif(shutil.which("uv") is None and find_spec("uv") is None, reason="uv is not installed")
def test_requirements_in_an_archive_give_it_an_environment(tmp_path: Path) -> None:
    source = "def handle(data, context):\n    import six\n    return data and [six.__version__]\n"
    files = {
        "MAR-INF/MANIFEST.json": manifest(handler="h"),
        "h.py": source,
        "requirements.txt": "six==1.16.0\n",
    }
    mar(tmp_path / "models" / "six" / "1" / "model.mar", files)
    with (
        serve(tmp_path / "models", tmp_path / "log", "--cache-dir", str(tmp_path / "cache")) as server,
        backline.connect(server.url) as client,
    ):
        assert client["six"](np.array([b"x"], object))["output"][0] == b"1.16.0"


@pytest.mark.skipif(shutil.which("uv") is None and find_spec("uv") is None, reason="uv is not installed")
def test_requirements_come_on_top_of_the_servers_packages(tmp_path: Path) -> None:
    """The handler finds the server's torch without listing it, and its own version of another package."""
    source = (
        "import numpy, packaging, torch\n\n"
        "def handle(data, context):\n"
        "    places = {one.__name__: one.__file__ for one in (torch, packaging, numpy)}\n"
        "    return data and [{'version': packaging.__version__, **places}]\n"
    )
    files = {
        "MAR-INF/MANIFEST.json": manifest(handler="h"),
        "h.py": source,
        "requirements.txt": "packaging==23.1\ntorch\n",
    }
    mar(tmp_path / "models" / "own" / "1" / "model.mar", files)
    cache = tmp_path / "cache"
    with serve(tmp_path / "models", tmp_path / "log", "--cache-dir", str(cache)) as server:
        found = ask(server, "own", "x")

    assert found["version"] == "23.1"
    (environment,) = (cache / "environments").glob("[0-9a-f]*")
    assert sorted(path.name for path in environment.glob("lib/*/site-packages/*.dist-info")) == [
        "packaging-23.1.dist-info"
    ]
    import torch

    assert found["torch"] == torch.__file__
    assert found["numpy"] == np.__file__


def test_a_handler_is_debugged_in_the_servers_process_and_loaded_again(tmp_path: Path) -> None:
    def write(answer: str) -> None:
        source = (
            f"import os\n\ndef handle(data, context):\n    return data and [{{'pid': os.getpid(), 'answer':"
            f" '{answer}'}}]\n"
        )
        mar(
            tmp_path / "models" / "h" / "1" / "model.mar",
            {"MAR-INF/MANIFEST.json": manifest(handler="h"), "h.py": source},
        )

    write("first")
    options = ("--debug", "h", "--cache-dir", str(tmp_path / "cache"))
    with serve(tmp_path / "models", tmp_path / "log", *options) as server:
        assert ask(server, "h", "x") == {"pid": server.process.pid, "answer": "first"}
        write("second")
        end = time.monotonic() + 30
        while ask(server, "h", "x")["answer"] != "second":
            assert time.monotonic() < end, server.output
            time.sleep(0.05)


# invalid archives


def mar(path: Path, files: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for name, text in files.items():
            opened.writestr(name, text)
    return path


def manifest(**model: str) -> str:
    return json.dumps({"model": {"modelName": "m", "modelVersion": "1.0", **model}})


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "it does not hold MAR-INF/MANIFEST.json"),
        ({"MAR-INF/MANIFEST.json": "{"}, "MAR-INF/MANIFEST.json is not JSON"),
        ({"MAR-INF/MANIFEST.json": "{}"}, "names no handler"),
        (
            {"MAR-INF/MANIFEST.json": manifest(handler="x", serializedFile="a.pt")},
            "its serializedFile 'a.pt' is not in the archive",
        ),
        (
            {"MAR-INF/MANIFEST.json": manifest(handler="x", configFile="c.yaml"), "c.yaml": "a: ["},
            "c.yaml cannot be read",
        ),
        (
            {"MAR-INF/MANIFEST.json": manifest(handler="x", configFile="c.yaml"), "c.yaml": "3"},
            "c.yaml must be a mapping of keys to values",
        ),
        ({"MAR-INF/MANIFEST.json": "x" * (1 << 21)}, "is larger than 1048576 bytes"),
    ],
)
def test_a_wrong_archive_is_refused_before_anything_runs(
    tmp_path: Path, files: dict[str, str], text: str
) -> None:
    with pytest.raises(BacklineError, match=text):
        load(mar(tmp_path / "model.mar", files), ModelConfig("m"), options=TRUSTED)


@pytest.mark.parametrize("content", [b"not an archive", b"PK\x03\x04 cut short", b"\x1f\x8b\x08 cut short"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.mar").write_bytes(content)
    with pytest.raises(BacklineError, match=r"neither a zip file nor a gzipped tar file|is damaged"):
        load(tmp_path / "model.mar", ModelConfig("m"), options=TRUSTED)


def test_an_archive_whose_names_are_not_utf_8_is_damaged(tmp_path: Path) -> None:
    file = mar(tmp_path / "model.mar", {"MAR-INF/MANIFEST.json": "{}", "naïve": ""})
    file.write_bytes(file.read_bytes().replace("naïve".encode(), b"na\xff\xfeve"))
    with pytest.raises(InvalidArgument, match="is damaged"):
        load(file, ModelConfig("m"), options=TRUSTED)
    file = file.rename(tmp_path / "model.pt")
    with pytest.raises(InvalidArgument, match="is a broken archive"):
        identify(file)


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "a/../../outside.py"])
def test_an_archive_unpacks_nothing_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    archived = mar(tmp_path / "model.mar", {"handler.py": "", name: "x"})
    with pytest.raises(InvalidArgument, match="is refused"):
        unpacked(archived, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.mar"]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    archived = mar(tmp_path / "model.mar", {"a": "x" * 1000})
    with pytest.raises(InvalidArgument, match="unpacks to more than"):
        unpacked(archived, tmp_path / "cache", limits=UnpackLimits(harmless=100, ratio=0))


def test_an_archive_is_unpacked_once_and_again_when_it_changes(tmp_path: Path) -> None:
    first = unpacked(mar(tmp_path / "model.mar", {"a": "1"}), tmp_path / "cache")
    marked = put(first / "mark", "")
    assert unpacked(tmp_path / "model.mar", tmp_path / "cache") == first
    second = unpacked(mar(tmp_path / "model.mar", {"a": "22"}), tmp_path / "cache")

    assert marked.exists()
    assert (second / "a").read_text() == "22"


def test_an_environment_unused_for_a_day_is_removed_unless_held(tmp_path: Path) -> None:
    old, held = (
        unpacked(mar(tmp_path / f"{name}.mar", {name: ""}), tmp_path / "cache") for name in ("old", "held")
    )
    for folder in (old, held):
        os.utime(folder, (0, 0))
    descriptor = hold(held)
    unpacked(mar(tmp_path / "new.mar", {"new": ""}), tmp_path / "cache")
    os.close(descriptor)

    assert not old.exists()
    assert held.exists()


BAD_HANDLERS = {
    "unknown": (
        {"handler": "nobody"},
        {},
        "does not contain its handler 'nobody.py', and no built-in handler has that name",
    ),
    "syntax": ({"handler": "h.py"}, {"h.py": "def handle(:"}, "SyntaxError"),
    "nothing": ({"handler": "h.py"}, {"h.py": "x = 1"}, "expected a function handle"),
    "two": (
        {"handler": "h"},
        {"h.py": "class A:\n  def handle(self, d, c): ...\nclass B(A): ...\n"},
        "found A, B",
    ),
    "initialize": (
        {"handler": "h"},
        {"h.py": "class A:\n  def initialize(self, c): 1/0\n  def handle(self, d, c): ...\n"},
        "division by zero",
    ),
    "timeout": (
        {"handler": "h", "configFile": "c"},
        {"h.py": "def handle(d, c): ...", "c": "batchSize: many"},
        "batchSize is 'many'",
    ),
    "sequences": (
        {"handler": "h", "configFile": "c"},
        {"h.py": "def handle(d, c): ...", "c": "sequenceBatching: true"},
        "sequenceBatching",
    ),
    "missing": (
        {"handler": "image_classifier"},
        {},
        "the built-in handler 'image_classifier' needs the package 'torchvision'",
    ),
}


def test_a_handler_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    for name, (model, files, _) in BAD_HANDLERS.items():
        mar(
            tmp_path / "models" / name / "1" / "model.mar",
            {"MAR-INF/MANIFEST.json": manifest(**model), **files},
        )
    put(
        tmp_path / "path" / "torchvision" / "__init__.py",
        "raise ModuleNotFoundError('gone', name='torchvision')",
    )
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join((str(tmp_path / "path"), *sys.path)),
    }
    with serve(tmp_path / "models", tmp_path / "log", ready=False, environment=environment) as server:
        server.wait_started()
        with backline.connect(server.url) as client:
            reasons = {model.name: model.reason for model in client.models()}
    for name, (_, _, text) in BAD_HANDLERS.items():
        assert text in reasons[name], name
    assert "ZeroDivisionError: division by zero" in server.output  # with the handler's traceback
    assert "errors.InvalidArgument" not in server.output  # in a traceback through Backline's own code
