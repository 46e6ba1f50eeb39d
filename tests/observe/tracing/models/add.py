import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Adds 1; rejects negative numbers."""

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        if given.flat[0] < 0:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("negative"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", given + 1)])
