"""Sums what comes in a sequence, and tells what it sees of where it is."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            identity = int(given["id"][0, 0])
            if given["start"][0, 0]:
                self.sums[identity] = 0
            self.sums[identity] += int(given["x"][0, 0])
            controls = {name: [str(array.dtype), array.shape, array.tolist()] for name, array in given.items() if name != "x"}
            told = json.dumps([request.correlation_id(), request.flags(), dict(sorted(controls.items()))])
            answers.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("sum", np.array([[self.sums[identity]]], np.int32)),
                        pb_utils.Tensor("told", np.array([[told.encode()]], np.object_)),
                    ]
                )
            )
        return answers
