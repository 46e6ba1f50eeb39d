"""A checksum of audio, and the number of the run that computed it."""

import zlib

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.runs = 0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        self.runs += 1
        text = f"{zlib.crc32(audio.tobytes()):08x}".encode()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("FINGERPRINT", np.array([text], np.object_)),
                pb_utils.Tensor("RUN", np.array([self.runs], np.int32)),
            ]
        )
