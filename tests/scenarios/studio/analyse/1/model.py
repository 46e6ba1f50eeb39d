"""Copies audio, and proposes a gain of 10 if its peak is below 0.1."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        outputs = [pb_utils.Tensor("COPY", audio)]
        if np.abs(audio).max() < 0.1:
            outputs.append(pb_utils.Tensor("GAIN", np.full((len(audio), 1), 10, np.float32)))
        return pb_utils.InferenceResponse(outputs)
