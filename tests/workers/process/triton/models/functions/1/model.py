"""Answers with JSON of what a part of the API gives; an exception is reported by its type and text."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils

from .beside import BESIDE


def plain(value):
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), [plain(element) for element in value.reshape(-1).tolist()]]
    if isinstance(value, (list, tuple, set)):
        return [plain(element) for element in (sorted(value) if isinstance(value, set) else value)]
    if isinstance(value, type):
        return value.__name__
    return value


class NotContiguous:
    """A tensor of every second column."""

    def __init__(self):
        self.array = np.zeros((4, 4), np.float32)[:, ::2]

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnGpu(NotContiguous):
    def __dlpack_device__(self):
        return (2, 0)


class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        responses = []
        for request in requests:
            what = pb_utils.get_input_tensor_by_name(request, "what").as_numpy()[0].decode()
            try:
                told = plain(getattr(self, what)(request))
            except Exception as error:
                # What pybind11 says of arguments is about C++.
                told = {"raised": type(error).__name__, "text": "" if isinstance(error, TypeError) else str(error)}
            tensor = pb_utils.Tensor("told", np.array([json.dumps(told).encode()], np.object_))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses

    # where the model is

    def arguments(self, request):
        return [self.args[name] for name in sorted(self.args) if name not in ("model_config", "model_repository")]

    def repository(self, request):
        return os.path.basename(self.args["model_repository"])

    def configuration(self, request):
        return self.config

    def model_dir(self, request):
        return os.path.relpath(pb_utils.get_model_dir(), self.args["model_repository"])

    def file(self, request):
        return [os.path.relpath(__file__, self.args["model_repository"]), __name__, __package__]

    def beside(self, request):
        import beside_absolute

        return [BESIDE, beside_absolute.BESIDE]

    # requests

    def request(self, request):
        return [
            request.request_id(),
            request.correlation_id(),
            request.flags(),
            request.timeout(),
            json.loads(request.parameters() or "{}"),
            request.requested_output_names(),
            request.is_cancelled(),
            type(request.trace()).__name__,
            request.trace().get_context(),
        ]

    def parameters(self, request):
        return request.parameters()

    def inputs(self, request):
        return [[tensor.name(), tensor.shape(), tensor.is_cpu(), tensor.as_numpy()] for tensor in request.inputs()]

    def missing_input(self, request):
        return pb_utils.get_input_tensor_by_name(request, "nothing")

    def input_is_writable(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "number").as_numpy()
        array += 1
        return array

    # tensors

    def tensor(self, request):
        tensor = pb_utils.Tensor("a", np.arange(6, dtype=np.uint8).reshape(2, 3))
        return [tensor.name(), tensor.shape(), tensor.is_cpu(), tensor.as_numpy(), tensor.__dlpack_device__()]

    def tensor_in_fortran_order(self, request):
        return pb_utils.Tensor("a", np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3))).as_numpy()

    def tensor_of_scalar(self, request):
        return pb_utils.Tensor("a", np.array(3.5, np.float32)).shape()

    def tensor_without_name(self, request):
        return pb_utils.Tensor("", np.zeros(1)).name()

    def tensor_of_list(self, request):
        return pb_utils.Tensor("a", [1, 2]).shape()

    def tensor_of_complex(self, request):
        return pb_utils.Tensor("a", np.zeros(1, np.complex64)).shape()

    def tensor_of_text(self, request):
        return pb_utils.Tensor("a", np.array(["text"])).shape()

    def tensor_of_bytes_objects(self, request):
        return pb_utils.Tensor("a", np.array([b"x", "y", 3], np.object_)).as_numpy()

    # DLPack

    def dlpack_round_trip(self, request):
        tensor = pb_utils.Tensor("a", np.arange(4, dtype=np.int64).reshape(2, 2))
        back = pb_utils.Tensor.from_dlpack("b", tensor.to_dlpack())
        return [back.name(), back.as_numpy()]

    def dlpack_by_protocol(self, request):
        return np.from_dlpack(pb_utils.Tensor("a", np.arange(3, dtype=np.float64)))

    def dlpack_from_numpy(self, request):
        return pb_utils.Tensor.from_dlpack("b", np.arange(3, dtype=np.uint16)).as_numpy()

    def dlpack_of_bytes(self, request):
        return str(pb_utils.Tensor("a", np.array([b"x"], np.object_)).to_dlpack())

    def dlpack_not_contiguous(self, request):
        return pb_utils.Tensor.from_dlpack("b", NotContiguous()).shape()

    def dlpack_of_nothing(self, request):
        return pb_utils.Tensor.from_dlpack("b", "text").shape()

    def dlpack_without_name(self, request):
        return pb_utils.Tensor.from_dlpack("", np.zeros(1)).shape()

    # datatypes and configurations

    def datatypes(self, request):
        kinds = [np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64]
        kinds += [np.float16, np.float32, np.float64, np.object_, np.bytes_, np.str_, np.complex64]
        numbers = [pb_utils.triton_to_numpy_type(number) for number in range(16)]
        return [[pb_utils.numpy_to_triton_type(kind) for kind in kinds], [kind and np.dtype(kind).name for kind in numbers]]

    def datatypes_of_configurations(self, request):
        return {name: plain(kind) for name, kind in pb_utils.TRITON_STRING_TO_NUMPY.items()}

    def datatype_of_configuration(self, request):
        return [pb_utils.triton_string_to_numpy("TYPE_FP16"), pb_utils.triton_string_to_numpy("TYPE_BF16")]

    def tensors_of_configuration(self, request):
        found = [pb_utils.get_input_config_by_name(self.config, name) for name in ("number", "nothing")]
        return found + [pb_utils.get_output_config_by_name(self.config, name) for name in ("other", "nothing")]

    def decoupled_policy(self, request):
        others = ({}, {"model_transaction_policy": {"decoupled": True}})
        return [pb_utils.using_decoupled_model_transaction_policy(config) for config in (self.config, *others)]

    def byte_tensors(self, request):
        given = np.array([[b"a", "\u00fc"], [b"", 17]], np.object_)
        packed = pb_utils.serialize_byte_tensor(given)
        return [packed, pb_utils.deserialize_bytes_tensor(packed)]

    def byte_tensors_of_others(self, request):
        return [pb_utils.serialize_byte_tensor(array) for array in (np.zeros(2), np.zeros(0, np.object_), np.array([b"ab"], "S2"))]

    def constants(self, request):
        names = [name for name in dir(pb_utils) if name.startswith("TRITONSERVER_RE")]
        return {name: getattr(pb_utils, name) for name in names}

    # responses and errors

    def errors(self, request):
        error = pb_utils.TritonError("text", pb_utils.TritonError.NOT_FOUND)
        plain_error = pb_utils.TritonError("other")
        return [error.message(), error.code() == pb_utils.TritonError.NOT_FOUND, plain_error.code() == pb_utils.TritonError.INTERNAL]

    def response(self, request):
        tensor = pb_utils.Tensor("a", np.zeros(1, np.float32))
        good = pb_utils.InferenceResponse(output_tensors=[tensor])
        bad = pb_utils.InferenceResponse(error=pb_utils.TritonError("text"))
        found = [pb_utils.get_output_tensor_by_name(good, name) for name in ("a", "b")]
        return [good.has_error(), bad.has_error(), bad.error().message(), found[0].name(), found[1], len(bad.output_tensors())]

    def response_of_nothing(self, request):
        return pb_utils.InferenceResponse([None]).has_error()

    def response_of_arrays(self, request):
        return pb_utils.InferenceResponse([np.zeros(1)]).has_error()

    # requests of one's own

    def own_request(self, request):
        tensor = pb_utils.Tensor("a", np.zeros(1, np.float32))
        made = pb_utils.InferenceRequest(
            request_id="7",
            correlation_id="sequence",
            inputs=[tensor],
            requested_output_names=["b"],
            model_name="m",
            model_version=2,
            flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
            timeout=12,
            parameters={"a": 1, "b": "x", "c": True},
        )
        made.set_flags(made.flags() | pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        return [
            made.request_id(),
            made.correlation_id(),
            made.inputs()[0].name(),
            made.requested_output_names(),
            made.flags(),
            made.timeout(),
            json.loads(made.parameters()),
        ]

    def _make(self, **fields):
        given = {"inputs": [], "requested_output_names": ["b"], "model_name": "m", **fields}
        return pb_utils.InferenceRequest(**given).request_id()

    def own_request_without_model(self, request):
        return pb_utils.InferenceRequest(inputs=[], requested_output_names=["b"]).request_id()

    def own_request_of_nothing(self, request):
        return self._make(inputs=[None])

    def own_request_of_no_output(self, request):
        return self._make(requested_output_names=[None])

    def own_request_in_a_wrong_sequence(self, request):
        return self._make(correlation_id=1.5)

    def own_request_with_wrong_parameters(self, request):
        return self._make(parameters={"a": [1]})

    def own_request_with_wrong_keys(self, request):
        return self._make(parameters={1: 1})

    def memory(self, request):
        preferred = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        return [type(preferred).__name__, self._make(preferred_memory=preferred)]

    def both_names(self, request):
        import c_python_backend_utils

        return c_python_backend_utils.Tensor is pb_utils.Tensor
