"""Counts its executions of a request and answers at the one that the input specifies.

Request parameters: `gate` is a gate to wait at in the first execution, `fail_at` the execution that fails.
"""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

AGAIN = pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE
START, END = (
    pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
)


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.gates = Path(config["parameters"]["gates"]["string_value"])
        self.controlled = bool(config["sequence_batching"].get("control_input"))
        self.times = {}
        self.seen = {}
        self.runs = 0

    def execute(self, requests):
        for request in requests:
            gate = json.loads(request.parameters() or "{}").get("gate")
            if gate and not (self.gates / f"{gate}.entered").exists():
                (self.gates / f"{gate}.entered").touch()
                while not (self.gates / f"{gate}.open").exists():
                    time.sleep(0.001)
        batch = "|".join(str(self.value(request)) for request in requests)
        self.runs += 1
        return [self.answer(request, batch) for request in requests]

    def value(self, request):
        return int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)[0])

    def start(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "START")
        return None if tensor is None else int(tensor.as_numpy().reshape(-1)[0])

    def answer(self, request, batch):
        key = request.correlation_id()
        times = self.times[key] = self.times.get(key, 0) + 1
        flags = request.flags()
        marks = ("start " if flags & START else "") + ("end " if flags & END else "")
        control = f"START={self.start(request)} " if self.controlled else ""
        self.seen.setdefault(key, []).append(f"{marks}{control}{batch}")
        if json.loads(request.parameters() or "{}").get("fail_at") == times:
            del self.times[key], self.seen[key]
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"no time {times}"))
        if times < self.value(request):
            request.set_release_flags(AGAIN)
            return None
        del self.times[key]
        outputs = {
            "OUT": np.array([[times]], np.int32),
            "SEEN": np.array([["; ".join(self.seen.pop(key)).encode()]], np.object_),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])
