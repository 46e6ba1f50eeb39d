"""Answers with each element of its input in turn. Request parameters make it wait or fail.

`gate` is a gate to wait at before response number `at`, `fail_at` the position of an error; `final` flags the
last response as final, so that no empty one follows; `raise` raises an exception.
"""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.gates = Path(config["parameters"]["gates"]["string_value"])

    def execute(self, requests):
        for request in requests:
            parameters = json.loads(request.parameters() or "{}")
            if "raise" in parameters:
                raise ValueError(parameters["raise"])
            self.answer(request, parameters)

    def answer(self, request, parameters):
        sender = request.get_response_sender()
        values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)
        for place, value in enumerate(values):
            if "gate" in parameters and place == parameters.get("at", 0):
                self.wait(parameters["gate"], request)
            if place == parameters.get("fail_at", -1):
                response = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"no response {place}"))
            else:
                response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([value], np.int32))])
            last = place == len(values) - 1 and parameters.get("final", False)
            sender.send(response, FINAL if last else 0)
            if last:
                return
        sender.send(flags=FINAL)

    def wait(self, gate, request):
        (self.gates / f"{gate}.entered").touch()
        while not (self.gates / f"{gate}.open").exists():
            if request.is_cancelled():
                (self.gates / f"{gate}.cancelled").touch()
                return
            time.sleep(0.001)
