import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        x = request.inputs()[0].as_numpy()
        await asyncio.sleep(0.01)
        if x[0, 0] < 0:
            raise ValueError("negative")
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", (x * 2).astype(np.int32))])
