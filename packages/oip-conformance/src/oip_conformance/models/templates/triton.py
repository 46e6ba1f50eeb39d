import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One of the suite's models for the Python backend of Triton."""

    def initialize(self, args):
        self.name = args["model_name"]
        self.version = args["model_version"]
        config = json.loads(args["model_config"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)

    def execute(self, requests):
        if self.decoupled:
            for request in requests:
                self._stream(request)
            return None
        return [self._answer(request) for request in requests]

    def _tensors(self, request):
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        return {name: tensor.as_numpy() for name, tensor in found.items()}

    def _answer(self, request):
        try:
            if self.name == "identity_bf16":
                # NumPy has no BF16: the tensor passes as it is.
                tensor = pb_utils.get_input_tensor_by_name(request, "INPUT")
                return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT", tensor.to_dlpack())])
            start = bool(request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
            outputs = compute(self.name, self.version, self._tensors(request), request.correlation_id(), start)
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
        except ModelFailure as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _stream(self, request):
        sender = request.get_response_sender()
        try:
            for outputs in respond(self._tensors(request)):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(n, array) for n, array in outputs.items()]))
        except ModelFailure as error:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
