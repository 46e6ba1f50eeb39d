"""Small valid models, one of each format: `python specimens.py FORMAT FOLDER` builds one."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PYTHON: Final = "class Model:\n    def predict(self, x: float) -> float:\n        return x + 1\n"
HANDLER: Final = "def handle(data, context):\n    return [str(len(row)) for row in data or ()]\n"
PBTXT: Final = """backend: "onnxruntime" max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] }]
instance_group [{ count: 2 kind: KIND_CPU }]
dynamic_batching {
  preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 default_queue_policy { max_queue_size: 8 }
}
model_warmup [{
  name: "w" batch_size: 2 inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [ 16 ] zero_data: true } }
}]
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
version_policy { specific { versions: [ 1 ] } }
"""
MLMODEL: Final = """flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_version: 1.19.0
    providers:
    - CPUExecutionProvider
  python_function:
    data: model.onnx
    loader_module: mlflow.onnx
model_uuid: 52
"""
TOML: Final = """max_batch_size = 8
lane = "thread"
execution_timeout_seconds = 20

[labels]
stable = "1"
"""


def onnx(version: Path) -> None:
    from support import models

    models.add1(version.parent.parent, name=version.parent.name)


def configured(name: str, text: str) -> Callable[[Path], None]:
    """An ONNX model with a configuration."""

    def build(version: Path) -> None:
        onnx(version)
        (version.parent / name).write_text(text)

    return build


def mlflow(version: Path) -> None:
    """As mlflow.onnx.save_model of MLflow 3 writes it. ONNX Runtime is quicker to import than others."""
    onnx(version)
    (version / "MLmodel").write_text(MLMODEL)


def torch_module() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()


def torchscript(version: Path) -> None:
    import torch

    torch.jit.trace(torch_module(), torch.zeros(2, 4)).save(version / "model.pt")
    (version.parent / "config.pbtxt").write_text(
        'max_batch_size: 8 input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }]'
        ' output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3 ] }]'
    )


def exported(version: Path) -> None:
    import torch

    shapes = ({0: torch.export.Dim("items", min=1, max=64)},)
    torch.export.save(
        torch.export.export(torch_module(), (torch.zeros(2, 4),), dynamic_shapes=shapes),
        version / "model.pt2",
    )


def saved_model(version: Path) -> None:
    import tensorflow

    module = tensorflow.Module()
    module.scale = tensorflow.Variable([1.0, 2.0, 3.0, 4.0])

    @tensorflow.function(input_signature=[tensorflow.TensorSpec([None, 4], tensorflow.float32, name="x")])
    def run(x: Any) -> dict[str, Any]:
        return {"y": x * module.scale}

    tensorflow.saved_model.save(module, str(version / "model.savedmodel"), signatures=run)


def litert(version: Path) -> None:
    from server.test_hostile_files import TFLITE

    (version / "model.tflite").write_bytes(TFLITE)


def openvino(version: Path) -> None:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    onnx(version)
    openvino.save_model(openvino.convert_model(version / "model.onnx"), version / "model.xml")
    (version / "model.onnx").unlink()


def built(name: str, *arguments: Any) -> Callable[[Path], None]:
    """A model of the tests of backends."""

    def build(version: Path) -> None:
        from backends import served_models

        function: Any = getattr(served_models, name)
        make = function(*arguments) if arguments else function
        make(version)

    return build


def skops(version: Path) -> None:
    from backends.served_models import build_skops

    build_skops(version / "model.skops")


def archive(version: Path) -> None:
    manifest = (
        '{"createdOn": "01/01/2026", "runtime": "python", "archiverVersion": "0.12",'
        ' "model": {"modelName": "m", "serializedFile": "w.bin", "handler": "handler.py",'
        ' "modelVersion": "1.0", "configFile": "model-config.yaml"}}'
    )
    with zipfile.ZipFile(version / "model.mar", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("MAR-INF/MANIFEST.json", manifest)
        packed.writestr("handler.py", HANDLER)
        packed.writestr("w.bin", bytes(64))
        packed.writestr(
            "model-config.yaml", "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 4\nhandler:\n  a: [1, 2]\n"
        )


#: How a valid model of each format is built in its version's folder.
SPECIMENS: Final[dict[str, Callable[[Path], None]]] = {
    "onnx": onnx,
    "torchscript": torchscript,
    "pt2": exported,
    "savedmodel": saved_model,
    "litert": litert,
    "openvino": openvino,
    "jax": built("build_jax"),
    "xgboost": built("build_xgboost", "model.ubj"),
    "lightgbm": built("build_lightgbm"),
    "catboost": built("build_catboost"),
    "skops": skops,
    "mlflow": mlflow,
    "mar": archive,
    "config.pbtxt": configured("config.pbtxt", PBTXT),
    "model.toml": configured("model.toml", TOML),
}


def main(kind: str, folder: str) -> None:
    version = Path(folder) / "1"
    version.mkdir(parents=True)
    SPECIMENS[kind](version)
    shutil.rmtree(version / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
