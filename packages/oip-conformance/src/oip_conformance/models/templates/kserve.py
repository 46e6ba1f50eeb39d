import asyncio
import uuid

import kserve
from kserve.errors import InvalidInput


class SuiteModel(kserve.Model):
    """One of the suite's models for KServe's Python server: `python server.py` serves all of them."""

    def __init__(self, name, inputs, outputs):
        super().__init__(name)
        self._inputs = inputs
        self._outputs = outputs
        self.ready = True

    async def get_input_types(self):
        return self._inputs

    async def get_output_types(self):
        return self._outputs

    async def predict(self, payload, headers=None, response_headers=None):
        inputs = {}
        for entry in payload.inputs:
            array = entry.as_numpy()
            if entry.datatype == "BYTES":
                texts = [text if isinstance(text, bytes) else text.encode() for text in array.ravel()]
                array = np.array(texts, dtype=object).reshape(entry.shape)
            inputs[entry.name] = array
        for entry in self._inputs:
            if entry["name"] not in inputs:
                raise InvalidInput(f"the request lacks the input '{entry['name']}'")
        outputs = await asyncio.to_thread(compute, self.name, "1", inputs)
        names = [entry.name for entry in payload.request_outputs or []] or list(outputs)
        datatypes = {entry["name"]: entry["datatype"] for entry in self._outputs}
        answer = []
        for name in names:
            if name not in outputs:
                raise InvalidInput(f"the model has no output '{name}'")
            array = outputs[name]
            entry = kserve.InferOutput(name=name, shape=list(array.shape), datatype=datatypes[name])
            entry.set_data_from_numpy(array, binary_data=bool(payload.use_binary_outputs))
            answer.append(entry)
        return kserve.InferResponse(
            response_id=payload.id or str(uuid.uuid4()),
            model_name=self.name,
            infer_outputs=answer,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    kserve.ModelServer(enable_grpc=True).start([SuiteModel(*arguments) for arguments in MODELS])
