"""Adds 1 to its input and reports the inputs in its batch; request parameters make it wait or fail.

`gate` is a gate to wait at, `note` a file that logs each execution, `fail` an error for this request and
`code` its kind, `raise` an exception for the batch, `omit` an output to omit; `at` is the only model meant.
"""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.gates = Path(config["parameters"]["gates"]["string_value"])
        self.name = args["model_name"]
        self.batched = config["max_batch_size"] > 0
        self.outputs = [output["name"] for output in config["output"]]
        self.runs = 0

    def execute(self, requests):
        parameters = [self.parameters(request) for request in requests]
        batch = "|".join(self.members(request) for request in requests)
        for note in {given["note"] for given in parameters if "note" in given}:
            with (self.gates / note).open("a") as file:
                file.write(f"{self.name}: {batch}\n")
        for request, given in zip(requests, parameters, strict=True):
            if "gate" in given:
                self.wait(given["gate"], request)
        for given in parameters:
            if "raise" in given:
                raise ValueError(given["raise"])
        answers = [
            self.answer(request, given, batch) for request, given in zip(requests, parameters, strict=True)
        ]
        self.runs += 1
        return answers

    def parameters(self, request):
        parameters = json.loads(request.parameters() or "{}")
        return parameters if parameters.get("at", self.name) == self.name else {}

    def wait(self, gate, request):
        (self.gates / f"{gate}.entered").touch()
        while not (self.gates / f"{gate}.open").exists():
            if request.is_cancelled():
                (self.gates / f"{gate}.cancelled").touch()
            time.sleep(0.001)

    def members(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        return " ".join(str(value) for value in rows.reshape(-1))

    def answer(self, request, parameters, batch):
        if "fail" in parameters:
            code = getattr(pb_utils.TritonError, parameters.get("code", "INTERNAL"))
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(parameters["fail"], code))
        given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        optional = pb_utils.get_input_tensor_by_name(request, "PLUS")
        one = (len(given), 1) if self.batched else (1,)
        values = {
            "OUT": given + (1 if optional is None else optional.as_numpy()),
            "RUN": np.full(one, self.runs, np.int32),
            "BATCH": np.full(one, batch.encode(), np.object_),
        }
        wanted = {*request.requested_output_names()} - {parameters.get("omit")}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, values[name]) for name in self.outputs if name in wanted]
        )
