"""The scaled sums of a matrix's rows. A scale below zero fails, and one of 1000 raises."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        matrix = pb_utils.get_input_tensor_by_name(request, "MATRIX").as_numpy()
        scale = float(pb_utils.get_input_tensor_by_name(request, "SCALE").as_numpy().reshape(-1)[0])
        if scale == 1000:
            raise ValueError("a scale of 1000")
        if scale < 0:
            code = getattr(pb_utils.TritonError, CODES[int(-scale) - 1])
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a scale below zero", code))
        sums = (matrix.sum(axis=1) * scale).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SUMS", sums)])


CODES = (
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
)
