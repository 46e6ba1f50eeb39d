import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.greeting = json.loads(args["model_config"])["parameters"]["greeting"]["string_value"]

    def execute(self, requests):
        told = np.array([self.greeting.encode()], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("told", told)]) for _ in requests]
