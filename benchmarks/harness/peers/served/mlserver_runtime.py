"""A custom MLServer runtime for ONNX Runtime."""

from __future__ import annotations

import asyncio

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

#: Models whose input has more items than this run on a thread, to keep the event loop free.
INLINE_ITEMS = 1000


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        self.outputs_ = [output.name for output in self.session.get_outputs()]
        return True

    def run(self, array: np.ndarray) -> list[np.ndarray]:
        return self.session.run(self.outputs_, {self.input: array})

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        array = NumpyCodec.decode_input(payload.inputs[0])
        results = self.run(array) if array.size <= INLINE_ITEMS else await asyncio.to_thread(self.run, array)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[
                NumpyCodec.encode_output(name, result)
                for name, result in zip(self.outputs_, results, strict=True)
            ],
        )
