"""`request.parameters()` of a model for Triton's Python backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tritonclient.http as triton_http

from support.repositories import put
from support.server import serve

CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "received" data_type: TYPE_STRING dims: [ 2 ] } ]
"""
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            made = pb_utils.InferenceRequest(
                model_name="m", requested_output_names=["y"], inputs=request.inputs()
            )
            received = np.array([request.parameters(), made.parameters()], np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("received", received)]))
        return responses
"""


def test_a_received_request_always_has_a_json_object(tmp_path: Path) -> None:
    put(tmp_path / "models" / "told" / "config.pbtxt", CONFIG)
    put(tmp_path / "models" / "told" / "1" / "model.py", MODEL)
    given = triton_http.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))
    with serve(tmp_path / "models", tmp_path / "log") as server:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
        without = client.infer("told", [given]).as_numpy("received").tolist()
        with_one = client.infer("told", [given], parameters={"a": 1}).as_numpy("received").tolist()
        client.close()
    assert without == [b"{}", b""]
    assert with_one == [b'{"a":1}', b""]
