import asyncio

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import MLServerError
from mlserver.types import InferenceResponse, ResponseOutput


class SuiteModel(MLModel):
    """One of the suite's models for MLServer."""

    async def load(self):
        return True

    def _tensors(self, payload):
        found = {}
        for entry in payload.inputs:
            if entry.datatype == "BYTES":
                texts = [text.encode() for text in StringCodec.decode_input(entry)]
                found[entry.name] = np.array(texts, dtype=object).reshape(entry.shape)
            else:
                found[entry.name] = NumpyCodec.decode_input(entry)
        return found

    def _response(self, payload, outputs):
        wanted = [entry.name for entry in payload.outputs or []] or list(outputs)
        entries = []
        for name in wanted:
            if name not in outputs:
                raise MLServerError(f"the model has no output '{name}'", 400)
            array = outputs[name]
            datatype = "BYTES" if array.dtype == object else NumpyCodec.encode_output(name, array).datatype
            data = array.ravel().tolist()
            entries.append(ResponseOutput(name=name, datatype=datatype, shape=list(array.shape), data=data))
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=entries)

    def _compute(self, payload):
        inputs = self._tensors(payload)
        for entry in self.inputs or []:
            if entry.name not in inputs:
                raise MLServerError(f"the request lacks the input '{entry.name}'", 400)
        if self.name == "sequence":
            given = payload.parameters.model_dump() if payload.parameters else {}
            id, start = given.get("sequence_id"), given.get("sequence_start")
            return compute(self.name, self.version, inputs, id, bool(start))
        return compute(self.name, self.version, inputs)

    async def predict(self, payload):
        return self._response(payload, await asyncio.to_thread(self._compute, payload))

    async def predict_stream(self, payloads):
        async for payload in payloads:
            if self.name == "repeat":
                for outputs in respond(self._tensors(payload)):
                    yield self._response(payload, outputs)
            else:
                yield await self.predict(payload)
