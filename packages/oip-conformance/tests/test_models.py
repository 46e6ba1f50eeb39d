"""The suite's models: what is written for each server, and the ONNX files that are written without the library."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from oip_conformance.models.onnx_files import onnx_file
from oip_conformance.models.writer import FORMATS, write_models
from oip_conformance.suite_models import MODELS


@pytest.mark.parametrize("format", ["triton", "backline", "mlserver", "kserve", "torchserve", "onnx"])
def test_python_files_compile_and_every_model_of_a_server_is_written(format: str, tmp_path: Path) -> None:
    written = write_models(tmp_path, format)
    assert {"sum", "identity_fp32", "identity_bytes"} <= set(written)
    for archive in tmp_path.rglob("*.mar"):
        zipfile.ZipFile(archive).extractall(archive.with_suffix(""))
    for path in tmp_path.rglob("*.py"):
        py_compile.compile(str(path), doraise=True)
    if format in ("triton", "backline"):
        assert written == list(MODELS)
        assert all((tmp_path / name / "config.pbtxt").is_file() for name in written)


def test_models_of_kserve_are_written_once_however_often(tmp_path: Path) -> None:
    names = write_models(tmp_path, "kserve")
    write_models(tmp_path, "kserve")
    assert [entry[0] for entry in json.loads((tmp_path / "models.json").read_text())] == names


def test_handlers_of_torchserve_compute_from_what_its_envelope_passes(tmp_path: Path) -> None:
    """The envelope passes nested lists, of texts the first, and writes the outputs that the handler returns."""
    write_models(tmp_path, "torchserve")
    assert "service_envelope=kservev2" in (tmp_path / "config.properties").read_text()
    assert {"versioned_1.mar", "versioned_2.mar"} <= {path.name for path in tmp_path.iterdir()}
    script = """
import importlib.util, json, sys, types, zipfile
util = types.ModuleType("ts.utils.util")
util.PredictionException = type("PredictionException", (Exception,), {})
sys.modules |= {"ts": types.ModuleType("ts"), "ts.utils": types.ModuleType("ts.utils"), "ts.utils.util": util}
def handle(mar, *inputs):
    zipfile.ZipFile(mar + ".mar").extractall(mar)
    spec = importlib.util.spec_from_file_location("suite", mar + "/suite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    manifest = json.load(open(mar + "/MAR-INF/MANIFEST.json"))
    context = types.SimpleNamespace(manifest=manifest, system_properties={"model_dir": mar})
    assert module.handle(None, context) is None
    keys = "name", "datatype", "shape", "data"
    return [list(output) for output in module.handle([dict(zip(keys, entry)) for entry in inputs], context)]
assert handle("versioned_2", ("INPUT", "INT32", [2], [5, 6])) == [[7, 8]]
assert handle("strings_1", ("LEFT", "BYTES", [1], "a"), ("RIGHT", "BYTES", [1], "b")) == [["ab"]]
try:
    handle("sum_1", ("LEFT", "FP32", [1, 4], [[1, 2, 3, 4]]))
except util.PredictionException as error:
    assert error.args == ("the request lacks the input 'RIGHT'", 400)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_onnx_files_are_valid_and_compute_what_the_suite_says() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    for model in MODELS.values():
        for version in model.versions:
            content = onnx_file(model, version)
            if content is not None:
                onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    rows = np.arange(8, dtype="f4").reshape(2, 4)
    found = runtime.InferenceSession(onnx_file(MODELS["sum"], "1")).run(None, {"LEFT": rows, "RIGHT": rows[::-1]})
    np.testing.assert_array_equal(found, [rows + rows[::-1], rows - rows[::-1]])
    session = runtime.InferenceSession(onnx_file(MODELS["versioned"], "2"))
    assert session.run(None, {"INPUT": np.array([5], "i4")})[0].tolist() == [7]
    session = runtime.InferenceSession(onnx_file(MODELS["strings"], "1"))
    texts = {"LEFT": np.array(["a"], object), "RIGHT": np.array(["b"], object)}
    assert session.run(None, texts)[0].tolist() == ["ab"]


@pytest.mark.parametrize(
    ("format", "library"), [("torchscript", "torch"), ("savedmodel", "tensorflow"), ("sklearn", "sklearn")]
)
def test_files_of_a_framework_are_written_if_it_is_installed(format: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    written = write_models(tmp_path, format)
    assert "identity_fp32" in written
    assert list((tmp_path / "identity_fp32").rglob("model.*"))
    assert set(FORMATS) > {format}
