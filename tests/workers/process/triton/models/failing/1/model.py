"""Cannot be initialised, as the parameter `how` says."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        how = json.loads(args["model_config"])["parameters"]["how"]["string_value"]
        if how == "raised":
            raise FileNotFoundError("no weights here")
        if how == "raised_of_triton":
            raise pb_utils.TritonModelException("said by the model")

    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
