"""The first request of two waits for the second: coroutines of a decoupled model run concurrently."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.second = None

    async def execute(self, requests):
        if self.second is None:
            self.second = asyncio.Event()
        for request in requests:
            sender = request.get_response_sender()
            x = int(request.inputs()[0].as_numpy()[0])
            if x == 1:
                await self.second.wait()
            elif x == 2:
                self.second.set()
            sender.send(
                pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([x], np.int32))]), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )
