"""The models that the cases ask for: written for Triton's Python backend, or refused by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CODE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
        return responses
"""
DECOUPLED = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = request.inputs()[0].as_numpy()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
COMPLETING = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [4]})
        config.set_max_batch_size(8)
        config.set_dynamic_batching()
        return config
    def execute(self, requests):
        inputs = [request.inputs()[0].as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
RAISING = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("no weights")
    def execute(self, requests):
        return []
"""


def tensors(datatype: str, dims: str, inputs: str = "x") -> str:
    given = ", ".join(f'{{ name: "{name}" data_type: TYPE_{datatype} dims: {dims} }}' for name in inputs)
    return f'input [ {given} ] output [ {{ name: "y" data_type: TYPE_{datatype} dims: {dims} }} ] '


PYTHON = 'backend: "python" '
ONE = PYTHON + "instance_group [ { kind: KIND_CPU } ] "
CHAIN = (
    'platform: "ensemble" '
    + tensors("FP32", "[ 4 ]")
    + 'ensemble_scheduling { step [ { model_name: "echo" model_version: -1 input_map { key: "x" value: "x" }'
    ' output_map { key: "y" value: "y" } } ] } '
)

#: The models that are loaded at the start: the configuration, and the code of version 1.
LOADED: Mapping[str, tuple[str, str]] = {
    "echo": (ONE + tensors("FP32", "[ 4 ]"), CODE),
    "pair": (ONE + "max_batch_size: 4 dynamic_batching { } " + tensors("INT32", "[ 2 ]", "xz"), CODE),
    "choice": (
        ONE + 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] },'
        ' { name: "z" data_type: TYPE_FP32 dims: [ 4 ] optional: true } ]'
        ' output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]',
        CODE,
    ),
    "words": (ONE + tensors("STRING", "[ 2 ]"), CODE),
    "flags": (ONE + tensors("BOOL", "[ 2 ]"), CODE),
    "free": (ONE + tensors("FP32", "[ -1, -1 ]"), CODE),
    "half": (ONE + tensors("FP16", "[ 2 ]"), CODE),
    "flow": (ONE + "model_transaction_policy { decoupled: true } " + tensors("FP32", "[ 4 ]"), DECOUPLED),
    "steady": (ONE + "model_transaction_policy { decoupled: false } " + tensors("FP32", "[ 4 ]"), CODE),
    "chain": (CHAIN, ""),
    "cached": (ONE + "response_cache { enable: true } " + tensors("FP32", "[ 4 ]"), CODE),
    "plain": (PYTHON + tensors("FP32", "[ 4 ]"), CODE),
    "completed": (PYTHON, COMPLETING),
    "listed": (
        ONE
        + 'parameters [ { key: "size" value { string_value: "7" } } ] version_policy { all { } } '
        + tensors("FP32", "[ 4 ]"),
        CODE,
    ),
    "batched": (
        PYTHON
        + "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 100 }"
        + " instance_group [ { count: 2 kind: KIND_CPU } ] "
        + tensors("FP32", "[ 4 ]"),
        CODE,
    ),
    "remembering": (
        ONE + 'max_batch_size: 4 sequence_batching { control_input [ { name: "START" control [ {'
        " kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ] } " + tensors("FP32", "[ 1 ]"),
        CODE,
    ),
}
#: The models that are loaded by a case, if they can be.
OTHERS: Mapping[str, tuple[str, str]] = {
    "broken": (ONE + tensors("FP32", "[ 4 ]"), "raise ValueError('boom')\n"),
    "misspelt": (ONE + "max_batch_sise: 4 " + tensors("FP32", "[ 4 ]"), CODE),
    "renamed": ('name: "other" ' + ONE + tensors("FP32", "[ 4 ]"), CODE),
    "odd": ('backend: "nonesuch" ' + tensors("FP32", "[ 4 ]"), CODE),
    "apart": (CHAIN.replace('"echo"', '"nobody"'), ""),
    "leaning": (CHAIN.replace('"echo"', '"broken"'), ""),
    "negative": (ONE + "max_batch_size: -1 " + tensors("FP32", "[ 4 ]"), CODE),
    "spare": (ONE + tensors("FP32", "[ 4 ]"), CODE),
    "classless": (ONE + tensors("FP32", "[ 4 ]"), "x = 1\n"),
    "wordless": (ONE + tensors("FP32", "[ 4 ]"), "class TritonPythonModel\n"),
    "raising": (ONE + tensors("FP32", "[ 4 ]"), RAISING),
    "garbled": ("name 3", CODE),
    "untyped": (ONE + 'input [ { name: "x" dims: [ 4 ] } ]', CODE),
    "reshaped": (
        ONE + 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 5 ] } } ]',
        CODE,
    ),
    "unlabelled": (
        ONE + 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "none.txt" } ]',
        CODE,
    ),
    "cold": (
        ONE
        + tensors("FP32", "[ 4 ]")
        + 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 4'
        ' input_data_file: "none" } } }',
        CODE,
    ),
    "crowded": (ONE + "instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ] " + tensors("FP32", "[ 4 ]"), CODE),
    "picky": (ONE + "version_policy { specific { versions: [ 7 ] } } " + tensors("FP32", "[ 4 ]"), CODE),
    "formless": (ONE + tensors("FP32", "[ 4 ]"), ""),
    "stumbling": (CHAIN.replace('"echo"', '"misspelt"'), ""),
    "lasting": (CHAIN.replace('"echo"', '"leaning"'), ""),
    "twofold": (CHAIN.replace('"echo"', '"double"'), ""),
    "unscheduled": ('platform: "ensemble" ' + tensors("FP32", "[ 4 ]"), ""),
    "unmapped": (CHAIN.replace('key: "y" value: "y"', 'key: "q" value: "y"'), ""),
    "guessed": ('platform: "guessed" ' + tensors("FP32", "[ 4 ]"), CODE),
}


def write(folder: Path) -> tuple[Path, Path]:
    """Writes two repositories below `folder`; the model `double` is in both, with a version 2 of `echo`."""
    first, second = folder / "first", folder / "second"
    for name, (text, code) in {**LOADED, **OTHERS}.items():
        _write(first / name, text, code)
    _write(first / "listed", LOADED["listed"][0], CODE, "3")
    for repository in (first, second):
        _write(repository / "double", ONE + tensors("FP32", "[ 4 ]"), CODE)
    (first / "hollow").mkdir()
    (first / "hollow" / "config.pbtxt").write_text(ONE + tensors("FP32", "[ 4 ]"))
    (first / "unconfigured" / "1").mkdir(parents=True)
    return first, second


def _write(folder: Path, text: str, code: str, version: str = "1") -> None:
    (folder / version).mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text)
    if code:
        (folder / version / "model.py").write_text(code)
