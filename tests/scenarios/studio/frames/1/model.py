"""Sends a response for each frame of the audio. Audio of a negative first sample is an error."""

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self.answer(request)

    def answer(self, request):
        sender = request.get_response_sender()
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy().reshape(-1)
        given = pb_utils.get_input_tensor_by_name(request, "SIZE")
        size = 2 if given is None else int(given.as_numpy()[0, 0])
        if audio.size and audio[0] < 0:
            error = pb_utils.TritonError("the audio is negative", pb_utils.TritonError.INVALID_ARG)
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            return
        for index, start in enumerate(range(0, audio.size, size)):
            frame = pb_utils.Tensor("FRAME", audio[None, start : start + size])
            place = pb_utils.Tensor("INDEX", np.array([[index]], np.int32))
            sender.send(pb_utils.InferenceResponse([frame, place]))
        sender.send(flags=FINAL)
