"""A LitServe server, `litserve_app.py PORT NAME=MODEL.onnx...`, with the v2 protocol's JSON and paths."""

from __future__ import annotations

import os
import sys

import litserve
import numpy as np
import onnxruntime


class OnnxApi(litserve.LitAPI):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(api_path=f"/v2/models/{name}/infer")
        self.name = name
        self.path = path

    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]

    def decode_request(self, request):
        tensor = request["inputs"][0]
        return np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x):
        return self.session.run(self.outputs, {self.input: x})

    def encode_response(self, output):
        tensors = [
            {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
            for name, array in zip(self.outputs, output, strict=True)
        ]
        return {"model_name": self.name, "outputs": tensors}


if __name__ == "__main__":
    apis = [OnnxApi(*pair.split("=", 1)) for pair in sys.argv[2:]]
    litserve.LitServer(apis, accelerator="cpu", workers_per_device=os.cpu_count() or 1).run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning"
    )
