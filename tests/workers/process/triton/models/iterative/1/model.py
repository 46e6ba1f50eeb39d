"""Has each request as often as it says, and tells how often it was the start."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.seen = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            given = {tensor.name(): int(tensor.as_numpy()[0, 0]) for tensor in request.inputs()}
            runs, starts = self.seen.get(given["id"], (0, 0))
            runs, starts = runs + 1, starts + given["start"]
            self.seen[given["id"]] = runs, starts
            if runs < given["n"]:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                answers.append(None)
                continue
            del self.seen[given["id"]]
            tensors = [pb_utils.Tensor(name, np.array([[value]], np.int32)) for name, value in (("runs", runs), ("starts", starts))]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
