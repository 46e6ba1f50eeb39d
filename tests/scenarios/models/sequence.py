"""Adds up the inputs of each sequence and reports the control inputs of all requests in the batch."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

CONTROLS = ("START", "END", "READY", "CORRID")


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.gates = Path(config["parameters"]["gates"]["string_value"])
        self.shape = (1, 1) if config["max_batch_size"] else (1,)
        self.sums = {}
        self.runs = 0

    def execute(self, requests):
        for request in requests:
            gate = json.loads(request.parameters() or "{}").get("gate")
            if gate:
                (self.gates / f"{gate}.entered").touch()
                while not (self.gates / f"{gate}.open").exists():
                    time.sleep(0.001)
        seen = [self.seen(request) for request in requests]
        batch = "|".join(str(self.value(request)) if self.is_ready(request) else "-" for request in requests)
        self.runs += 1
        return [
            self.answer(request, controls, batch) for request, controls in zip(requests, seen, strict=True)
        ]

    def tensor(self, request, name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

    def value(self, request):
        return int(self.tensor(request, "IN"))

    def is_ready(self, request):
        ready = self.tensor(request, "READY")
        return ready is None or bool(ready)

    def seen(self, request):
        values = {name: self.tensor(request, name) for name in CONTROLS}
        shown = [
            f"{name}={v.decode() if isinstance(v, bytes) else v}"
            for name, v in values.items()
            if v is not None
        ]
        return " ".join([*shown, f"id={request.correlation_id()}", f"flags={request.flags()}"])

    def answer(self, request, controls, batch):
        sequence = request.correlation_id()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.sums[sequence] = 0
        total = self.sums[sequence] = self.sums.get(sequence, 0) + self.value(request)
        outputs = {
            "OUT": np.full(self.shape, total, np.int32),
            "RUN": np.full(self.shape, self.runs - 1, np.int32),
            "SEEN": np.full(self.shape, controls.encode(), np.object_),
            "BATCH": np.full(self.shape, batch.encode(), np.object_),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])
