"""How near a tempo is to that of four genres."""

import numpy as np
import triton_python_backend_utils as pb_utils

TEMPOS = np.array([60, 90, 120, 170], np.float32)


class TritonPythonModel:
    def execute(self, requests):
        tempos = [pb_utils.get_input_tensor_by_name(one, "TEMPO").as_numpy() for one in requests]
        scores = [1 / (1 + np.abs(tempo - TEMPOS)) for tempo in tempos]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", one)]) for one in scores]
