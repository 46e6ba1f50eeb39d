"""Multiplies audio by a factor: the input GAIN, or the configuration's parameter `default_gain`."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.default = float(config["parameters"]["default_gain"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        given = pb_utils.get_input_tensor_by_name(request, "GAIN")
        gain = np.float32(self.default) if given is None else given.as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOUDER", (audio * gain).astype(np.float32))])
