"""Answers with the first input that it ever got."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.first = None

    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(one, "VALUE").as_numpy() for one in requests]
        if self.first is None:
            self.first = given[0].copy()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("FIRST", self.first)]) for _ in requests]
