"""Reports its previous executions and their inputs."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.runs = []

    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        self.runs.append("|".join(" ".join(str(value) for value in rows.reshape(-1)) for rows in given))
        seen = "; ".join(self.runs).encode()
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", np.full((len(rows), 1), seen, np.object_))])
            for rows in given
        ]
