"""Answers with the inputs given, and with the request's parameters as JSON in SEEN."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        wanted = request.requested_output_names()
        outputs = [pb_utils.Tensor(f"OF_{one.name()}", one.as_numpy()) for one in request.inputs()]
        parameters = json.dumps(json.loads(request.parameters()), sort_keys=True)
        outputs.append(pb_utils.Tensor("SEEN", np.array([parameters.encode()], np.object_)))
        return pb_utils.InferenceResponse([one for one in outputs if one.name() in wanted])
