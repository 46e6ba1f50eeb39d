"""The peaks of audio at two gains, which another model applies."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return [await self.answer(request) for request in requests]

    async def answer(self, request):
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        given = pb_utils.get_input_tensor_by_name(request, "MODEL")
        model = "gain" if given is None else given.as_numpy()[0].decode()
        calls = [self.call(model, audio, gain) for gain in (0.5, 3.0)]
        responses = await asyncio.gather(*calls)
        for response in responses:
            if response.has_error():
                text = f"the call failed: {response.error().message()}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        louder = [pb_utils.get_output_tensor_by_name(one, "LOUDER").as_numpy() for one in responses]
        peaks = np.array([np.abs(values).max() for values in louder], np.float32)
        loud = pb_utils.Tensor("LOUD", np.array([peaks.max() > 1.0]))
        return pb_utils.InferenceResponse([pb_utils.Tensor("PEAKS", peaks), loud])

    def call(self, model, audio, gain):
        inputs = [
            pb_utils.Tensor("AUDIO", audio.reshape(1, -1)),
            pb_utils.Tensor("GAIN", np.array([[gain]], np.float32)),
        ]
        request = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=["LOUDER"], inputs=inputs
        )
        return request.async_exec()
