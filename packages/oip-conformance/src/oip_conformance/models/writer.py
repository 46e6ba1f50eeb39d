"""Writes the suite's models into a folder, for one server or as files of one framework."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from oip_conformance.models.onnx_files import onnx_file
from oip_conformance.suite_models import MODELS, SuiteModel
from oip_conformance.tensors import DATATYPES


class ModelError(Exception):
    """The models cannot be written; the message says why and what to do."""


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", f"{name}.py").read_text()


def _python(server: str) -> str:
    """The behaviour of all models, and the class that a server loads."""
    return f"{_template('behaviour')}\n\n{_template(server)}"


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _pbtxt(model: SuiteModel, backend: str) -> str:
    """The model's config.pbtxt."""
    lines = [f'name: "{model.name}"', f'backend: "{backend}"', f"max_batch_size: {model.batch}"]
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        for port in ports:
            datatype = "STRING" if port.datatype == "BYTES" else port.datatype
            lines.append(f'{kind} {{ name: "{port.name}" data_type: TYPE_{datatype} dims: {list(port.shape)} }}')
    if len(model.versions) > 1:
        lines.append("version_policy { all {} }")
    if model.decoupled:
        lines.append("model_transaction_policy { decoupled: true }")
    if model.name == "sequence":
        lines.append(
            "sequence_batching { max_sequence_idle_microseconds: 10000000 oldest { max_candidate_sequences: 8 } }"
        )
    lines.append("instance_group { count: 1 kind: KIND_CPU }")
    return "\n".join(lines) + "\n"


def _triton(folder: Path, model: SuiteModel) -> bool:
    _write(folder / model.name / "config.pbtxt", _pbtxt(model, "python"))
    for version in model.versions:
        _write(folder / model.name / version / "model.py", _python("triton"))
    return True


def _onnx(folder: Path, model: SuiteModel) -> bool:
    contents = {version: onnx_file(model, version) for version in model.versions}
    for version, content in contents.items():
        if content is not None:
            _write(folder / model.name / version / "model.onnx", content)
    return all(content is not None for content in contents.values())


def _backline(folder: Path, model: SuiteModel) -> bool:
    """ONNX where a graph can do it, else Triton's Python model; ONNX Runtime takes no text that is not UTF-8."""
    if model.name == "identity_bytes" or not _onnx(folder, model):
        return _triton(folder, model)
    _write(folder / model.name / "config.pbtxt", _pbtxt(model, "onnxruntime"))
    return True


def _ports(model: SuiteModel) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs as the protocol's metadata has them."""
    return {
        kind: [{"name": p.name, "datatype": p.datatype, "shape": list(model.shape(p))} for p in ports]
        for kind, ports in (("inputs", model.inputs), ("outputs", model.outputs))
    }


def _mlserver(folder: Path, model: SuiteModel) -> bool:
    if any(port.datatype == "BF16" for port in model.inputs):
        return False
    for version in model.versions:
        place = folder / model.name / version
        settings = {
            "name": model.name,
            "implementation": "suite.SuiteModel",
            "platform": "oip_python",
            "versions": list(model.versions),
            **_ports(model),
            "parameters": {"version": version},
        }
        _write(place / "model-settings.json", json.dumps(settings, indent=1))
        _write(place / "suite.py", _python("mlserver"))
    return True


def _kserve(folder: Path, model: SuiteModel) -> bool:
    """All models are in one file, which is written again with each of them."""
    if model.decoupled or model.optional or any(port.datatype == "BF16" for port in model.inputs):
        return False
    place = folder / "models.json"
    models = json.loads(place.read_text()) if place.exists() else []
    ports = _ports(model)
    models = [entry for entry in models if entry[0] != model.name]
    models.append([model.name, ports["inputs"], ports["outputs"]])
    _write(place, json.dumps(models, indent=1))
    head = "import json\nimport pathlib\n\n"
    table = 'MODELS = json.loads((pathlib.Path(__file__).parent / "models.json").read_text())\n'
    _write(folder / "server.py", f"{_template('behaviour')}\n\n{head}{table}\n\n{_template('kserve')}")
    return True


def _torchserve(folder: Path, model: SuiteModel) -> bool:
    """An archive for each version, and the settings with which TorchServe loads all of them."""
    if model.decoupled or model.optional or any(port.datatype == "BF16" for port in model.inputs):
        return False
    _write(folder / "config.properties", "service_envelope=kservev2\nload_models=all\ndefault_workers_per_model=1\n")
    table = {name: datatype.numpy for name, datatype in DATATYPES.items() if name != "BYTES"}
    source = f"{_template('behaviour')}\n\nNUMPY = {table}\n\n{_template('torchserve')}"
    for version in model.versions:
        about = {"modelName": model.name, "handler": "suite.py", "modelVersion": version}
        with zipfile.ZipFile(folder / f"{model.name}_{version}.mar", "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": about}))
            archive.writestr("inputs.json", json.dumps([port.name for port in model.inputs]))
            archive.writestr("suite.py", source)
    return True


def _simple(model: SuiteModel) -> bool:
    """Whether frameworks that know tensors of numbers only can compute the model."""
    numbers = all(port.datatype not in ("BYTES", "BF16") for port in model.inputs)
    return numbers and (model.name.startswith("identity_") or model.name in ("sum", "versioned", "spare"))


def _torchscript(folder: Path, model: SuiteModel) -> bool:
    if not _simple(model) or any(
        port.datatype.startswith("UINT") and port.datatype != "UINT8" for port in model.inputs
    ):
        return False
    try:
        import torch
    except ImportError:
        raise ModelError("TorchScript files need PyTorch: pip install torch") from None
    sources = {"sum": "def forward(self, a, b):\n    return a + b, a - b\n", "versioned": "return x + {version}"}
    for version in model.versions:
        body = sources.get(model.name, "return x").format(version=version)
        source = body if body.startswith("def") else f"def forward(self, x):\n    {body}\n"
        scripted = type(f"{model.name}_{version}", (torch.jit.ScriptModule,), {})()
        scripted.define(source)
        place = folder / model.name / version / "model.pt"
        place.parent.mkdir(parents=True, exist_ok=True)
        scripted.save(str(place))
    config = _pbtxt(model, "pytorch")
    for kind, ports in (("INPUT", model.inputs), ("OUTPUT", model.outputs)):
        for index, port in enumerate(ports):
            config = config.replace(f'name: "{port.name}" data', f'name: "{kind}__{index}" data')
    _write(folder / model.name / "config.pbtxt", config)
    return True


def _savedmodel(folder: Path, model: SuiteModel) -> bool:
    if not _simple(model):
        return False
    try:
        import tensorflow as tf
    except ImportError:
        raise ModelError("SavedModels need TensorFlow: pip install tensorflow") from None
    for version in model.versions:

        def function(*tensors: Any, version: str = version) -> dict[str, Any]:
            if model.name == "sum":
                return {"SUM": tensors[0] + tensors[1], "DIFFERENCE": tensors[0] - tensors[1]}
            return {"OUTPUT": tensors[0] + int(version) if model.name == "versioned" else tf.identity(tensors[0])}

        specs = [
            tf.TensorSpec(
                [None if size < 0 else size for size in model.shape(port)],
                tf.as_dtype(np.dtype(DATATYPES[port.datatype].numpy)),
                name=port.name,
            )
            for port in model.inputs
        ]
        module = tf.Module()
        module.f = tf.function(function, input_signature=specs)
        place = folder / model.name / version / "model.savedmodel"
        tf.saved_model.save(module, str(place), signatures={"serving_default": module.f.get_concrete_function()})
    _write(folder / model.name / "config.pbtxt", _pbtxt(model, "tensorflow"))
    return True


def _sklearn(folder: Path, model: SuiteModel) -> bool:
    """A transformer without a function returns its input: the identity, of the numbers that scikit-learn has."""
    if model.name not in ("identity_fp32", "identity_fp64"):
        return False
    try:
        import joblib
        from sklearn.preprocessing import FunctionTransformer
    except ImportError:
        raise ModelError("scikit-learn files need it: pip install scikit-learn") from None
    place = folder / model.name / "model.joblib"
    place.parent.mkdir(parents=True, exist_ok=True)
    joblib.dump(FunctionTransformer(), place)
    return True


#: By format, the function that writes one model, or returns False if the format cannot express it.
FORMATS: dict[str, Callable[[Path, SuiteModel], bool]] = {
    "triton": _triton,
    "backline": _backline,
    "mlserver": _mlserver,
    "kserve": _kserve,
    "torchserve": _torchserve,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "savedmodel": _savedmodel,
    "sklearn": _sklearn,
}


def write_models(folder: Path, format: str) -> list[str]:
    """Writes the models that the format can express, and returns their names.

    Raises ModelError if a library is missing, OSError if the folder cannot be written.
    """
    return [name for name, model in MODELS.items() if FORMATS[format](folder, model)]
