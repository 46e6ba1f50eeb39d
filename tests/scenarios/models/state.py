"""Adds its input to the sequence state that the server keeps."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        before = pb_utils.get_input_tensor_by_name(request, "STATE_IN").as_numpy()
        total = before + given
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUT", total), pb_utils.Tensor("STATE_OUT", total)]
        )
