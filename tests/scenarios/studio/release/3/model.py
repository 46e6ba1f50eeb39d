"""Greets as version 3."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        names = [pb_utils.get_input_tensor_by_name(one, "NAME").as_numpy()[0] for one in requests]
        greetings = [b"3: hello " + name for name in names]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("GREETING", np.array([one], np.object_))])
            for one in greetings
        ]
