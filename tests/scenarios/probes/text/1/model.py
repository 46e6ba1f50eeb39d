"""A text in capitals."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(one, "TEXT").as_numpy() for one in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("CAPITALS", np.array([text[0].upper()], np.object_))])
            for text in texts
        ]
