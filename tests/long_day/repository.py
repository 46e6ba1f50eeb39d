"""A repository with a model of every kind, each with a request that checks it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from support import models, networks
from support.repositories import put


@dataclass(frozen=True, slots=True)
class Kind:
    """A model and one request for it.

    `inputs` are the arguments of --input; `shows` is a text that `backline infer --json` prints for them.
    `needs` names the modules without which the model is left out of the repository.
    """

    name: str
    build: Callable[[Path], None]
    inputs: tuple[str, ...]
    shows: str
    needs: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in self.needs)


# Networks.


def build_add1(repository: Path) -> None:
    """Batches along its first dimension. Later versions arrive during the day."""
    models.add1(repository, "add1", "1", constant=1)


def build_spread(repository: Path) -> None:
    """Subtracts the mean over the first dimension, so its rows must not be batched with other requests'."""
    models.save(
        repository / "spread" / "1" / "model.onnx",
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, ["N", 2])],
    )


def build_total(repository: Path) -> None:
    """The sum of a sequence so far; the server keeps the sum between requests."""
    models.save(
        repository / "total" / "1" / "model.onnx",
        [helper.make_node("Add", ["x", "sum"], ["sum_out"])],
        [("x", TensorProto.FLOAT, ["N", 1]), ("sum", TensorProto.FLOAT, ["N", 1])],
        [("sum_out", TensorProto.FLOAT, ["N", 1])],
    )
    put(
        repository / "total" / "config.pbtxt",
        """
        max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
        output { name: "sum_out" data_type: TYPE_FP32 dims: [ 1 ] }
        sequence_batching {
          max_sequence_idle_microseconds: 60000000
          state { input_name: "sum" output_name: "sum_out" data_type: TYPE_FP32 dims: [ 1 ] }
        }
        """,
    )


def build_cached(repository: Path) -> None:
    models.add1(repository, "cached", constant=10)
    put(repository / "cached" / "config.pbtxt", "response_cache { enable: true }")


def build_licensed(repository: Path) -> None:
    """Holds a unit of a scarce resource during each run."""
    put(
        repository / "licensed" / "config.pbtxt",
        """
        backend: "identity"
        max_batch_size: 4
        input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
        output { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
        instance_group { count: 2 rate_limiter { resources { name: "licence" count: 1 } } }
        """,
    )
    (repository / "licensed" / "1").mkdir()


def build_openvino(repository: Path) -> None:
    import openvino

    file = networks.build(
        repository.parent / "doubler.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, ["N", 2])],
    )
    target = repository / "doubler" / "1" / "model.xml"
    target.parent.mkdir(parents=True)
    openvino.save_model(openvino.convert_model(file), target, compress_to_fp16=False)
    file.unlink()


def build_litert(repository: Path) -> None:
    """The notes of a window of audio: the network that the package basic-pitch contains."""
    spec = importlib.util.find_spec("basic_pitch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / "saved_models" / "icassp_2022"
    target = repository / "pitch" / "1" / "model.tflite"
    target.parent.mkdir(parents=True)
    target.write_bytes((folder / "nmp.tflite").read_bytes())


def build_torchscript(repository: Path) -> None:
    import torch

    class Halve(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    target = repository / "halve" / "1" / "model.pt"
    target.parent.mkdir(parents=True)
    torch.jit.trace(Halve(), torch.zeros(2, 2)).save(target)
    put(
        repository / "halve" / "config.pbtxt",
        'max_batch_size: 4 input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 2 ] }'
        ' output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 2 ] }',
    )


def build_archive(repository: Path) -> None:
    """A TorchServe archive with a handler that counts letters."""
    from model_archiver.model_archiver import ModelArchiver
    from model_archiver.model_archiver_config import ModelArchiverConfig

    handler = put(
        repository.parent / "handler.py",
        "def handle(data, context):\n    return [len(row['data']) for row in data] if data else None\n",
    )
    target = repository / "letters" / "1"
    target.mkdir(parents=True)
    ModelArchiver.generate_model_archive(
        ModelArchiverConfig(
            model_name="letters", handler=str(handler), version="1.0", export_path=str(target)
        )
    )
    handler.unlink()


# Tables: two columns; the second class is where the first column is large.

ROWS = np.array([[0, 1], [1, 0], [2, 1], [8, 0], [9, 1], [10, 0]] * 10, np.float32)
CLASSES = (ROWS[:, 0] > 5).astype(np.int64)


def build_lightgbm(repository: Path) -> None:
    import lightgbm

    (repository / "lights" / "1").mkdir(parents=True)
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 1}
    lightgbm.train(settings, lightgbm.Dataset(ROWS, CLASSES), 10).save_model(
        repository / "lights" / "1" / "model.txt"
    )


def build_xgboost(repository: Path) -> None:
    import xgboost

    (repository / "boosted" / "1").mkdir(parents=True)
    xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(ROWS, CLASSES).save_model(
        repository / "boosted" / "1" / "model.json"
    )


def build_skops(repository: Path) -> None:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    (repository / "logistic" / "1").mkdir(parents=True)
    skops.io.dump(LogisticRegression().fit(ROWS, CLASSES), repository / "logistic" / "1" / "model.skops")


# Python.

THUMBNAIL = '''
import numpy as np

from backline.model import Image


def thumbnail(picture: Image["L"]) -> dict:
    """The size and brightness of a picture."""
    return {"width": picture.shape[1], "height": picture.shape[0], "brightness": int(np.mean(picture))}
'''
LOUDNESS = '''
import numpy as np

from backline.model import Audio


def loudness(sound: Audio[8000]) -> dict:
    """Seconds and peak of a recording."""
    return {"seconds": sound.size / 8000, "peak": round(float(np.abs(sound).max()), 2)}
'''
#: Text in, a word per response, with an input that may be left out.
WORDS = """
from collections.abc import Iterator


def stream(text: str, times: int = 1) -> Iterator[str]:
    yield from text.split() * times
"""
DECORATE = """
def decorate(word: str, mark: str = "!") -> str:
    return word.upper() + mark
"""
#: An ensemble with a decoupled step and an input that clients may leave out.
CHANT = """
platform: "ensemble"
input [
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "times" data_type: TYPE_INT64 dims: [ 1 ] optional: true }
]
output { name: "shout" data_type: TYPE_STRING dims: [ 1 ] }
ensemble_scheduling {
  step { model_name: "stream" model_version: -1
    input_map { key: "text" value: "text" } input_map { key: "times" value: "times" }
    output_map { key: "output" value: "word" } }
  step { model_name: "decorate" model_version: -1
    input_map { key: "word" value: "word" }
    output_map { key: "output" value: "shout" } }
}
"""
#: Calls add1 twice, through Triton's API.
TWICE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        for _ in range(2):
            response = pb_utils.InferenceRequest(
                model_name="add1",
                requested_output_names=["OUTPUT0"],
                inputs=[pb_utils.Tensor("INPUT0", tensor.as_numpy())],
            ).exec()
            if response.has_error():
                return pb_utils.InferenceResponse(error=response.error())
            tensor = pb_utils.get_output_tensor_by_name(response, "OUTPUT0")
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())])
"""
TWICE_CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] }
"""
#: Needs a package that the server does not have, so it runs in a separate environment.
NOTEBOOK = """
import tinydb
from tinydb.storages import MemoryStorage


class Model:
    def load(self) -> None:
        self.notes = tinydb.TinyDB(storage=MemoryStorage)

    def predict(self, note: str) -> int:
        return self.notes.insert({"note": note})
"""


def python(name: str, code: str, config: str = "", requirements: str = "") -> Callable[[Path], None]:
    def build(repository: Path) -> None:
        put(repository / name / "1" / "model.py", code)
        if config:
            put(repository / name / "config.pbtxt", config)
        if requirements:
            put(repository / name / "requirements.txt", requirements)

    return build


def build_chant(repository: Path) -> None:
    put(repository / "chant" / "config.pbtxt", CHANT)


def picture() -> bytes:
    """A PNG of 4 by 3 pixels, all of brightness 100."""
    from PIL import Image

    file = BytesIO()
    Image.new("L", (4, 3), 100).save(file, "PNG")
    return file.getvalue()


def sound() -> bytes:
    """A WAV of half a second at 8 kHz that begins with a click of 0.5."""
    import soundfile

    samples = np.zeros(4000, np.float32)
    samples[0] = 0.5
    file = BytesIO()
    soundfile.write(file, samples, 8000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def put_files(folder: Path) -> None:
    """The files that some of the requests below send."""
    (folder / "picture.png").write_bytes(picture())
    (folder / "click.wav").write_bytes(sound())


ONES = json.dumps([[1] * 16])

#: The models that `backline new` writes, by template. The pipeline comes with its step, words.
CREATED = {"model": "tagger", "batch": "linear", "stream": "shouts", "triton": "gate", "pipeline": "sorter"}

KINDS = (
    Kind("add1", build_add1, (f"INPUT0={ONES}",), "2.0, 2.0"),
    Kind("spread", build_spread, ("x=[[1, 1], [3, 5]]",), "[-1.0, -2.0], [1.0, 2.0]"),
    Kind("total", build_total, ("x=[[5]]",), "[[5.0]]"),
    Kind("cached", build_cached, (f"INPUT0={ONES}",), "11.0, 11.0"),
    Kind("licensed", build_licensed, ('text=[["hello"]]',), '[["hello"]]'),
    Kind("stream", python("stream", WORDS), ("text=one two",), '"two"'),
    Kind("decorate", python("decorate", DECORATE), ("word=hey",), '"HEY!"'),
    Kind("chant", build_chant, ("text=one two",), '"TWO!"'),
    Kind("twice", python("twice", TWICE, TWICE_CONFIG), (f"INPUT0={ONES}",), "3.0, 3.0"),
    Kind(
        "thumbnail",
        python("thumbnail", THUMBNAIL),
        ("picture=@picture.png",),
        '{"width": 4, "height": 3, "brightness": 100}',
        ("PIL",),
    ),
    Kind(
        "loudness",
        python("loudness", LOUDNESS),
        ("sound=@click.wav",),
        '{"seconds": 0.5, "peak": 0.5}',
        ("soundfile", "soxr"),
    ),
    Kind(
        "notebook",
        python("notebook", NOTEBOOK, requirements="tinydb==4.8.0\n"),
        ("note=remember",),
        "[1]",
        ("uv",),
    ),
    Kind("doubler", build_openvino, ("x=[[2, 3]]",), "[4.0, 6.0]", ("openvino",)),
    Kind("pitch", build_litert, ("zeros",), "172, 88", ("ai_edge_litert", "basic_pitch")),
    Kind("lights", build_lightgbm, ("input__0=[[9, 1]]",), "[0.8", ("lightgbm",)),
    Kind("boosted", build_xgboost, ("input__0=[[9, 1]]",), "[0.9", ("xgboost",)),
    Kind("logistic", build_skops, ("input__0=[[9, 1]]",), '"data": [1]', ("skops", "sklearn")),
    Kind("halve", build_torchscript, ("INPUT__0=[[4, 6]]",), "[2.0, 3.0]", ("torch",)),
    Kind("letters", build_archive, ("data=four",), '["4"]', ("torch", "model_archiver")),
)


#: Requests for the models that `backline new` writes.
CREATED_KINDS = (
    ("tagger", "text=Backline serves", '{"Backline": "name", "serves": "verb"}'),
    ("linear", "x=[[1, 2, 3, 4]]", "[[3.33"),
    ("shouts", "text=one two", '"TWO"'),
    ("gate", "x=[[1, 2, 3, 4]]", "[[3.33"),
    ("sorter", "text=the longest words", '["longest", "words", "the"]'),
)


def kinds() -> list[Kind]:
    """The kinds of models whose runtimes are installed."""
    return [kind for kind in KINDS if kind.installed]


def build(repository: Path) -> None:
    for kind in kinds():
        kind.build(repository)
