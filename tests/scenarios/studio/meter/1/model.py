"""The total and the number of the levels of each sequence so far."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.state = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        def value(name):
            return int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0])

        sequence = value("CORRID")
        total, count = (0, 0) if value("START") else self.state.get(sequence, (0, 0))
        if value("READY"):
            total, count = total + value("LEVEL"), count + 1
        self.state[sequence] = (total, count)
        if value("END"):
            del self.state[sequence]
        outputs = {"TOTAL": total, "COUNT": count}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.array([[number]], np.int32)) for name, number in outputs.items()]
        )
