"""The envelope for KServe's v2 protocol, which is the Open Inference Protocol in JSON, for one request per
batch. The inputs of the request become the rows for the handler.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import BaseEnvelope, json_of

#: Datatypes whose names differ from NumPy's by more than case.
_DTYPES = {"FP16": "float16", "FP32": "float32", "FP64": "float64"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class KServev2Envelope(BaseEnvelope):
    """An envelope that passes each input to the handler as a row whose `data` are nested lists (for BYTES,
    the first string). The handler's result for each row becomes an output.
    """

    def parse_input(self, data: Any) -> Any:
        request = json_of(data[0])
        self._id = request.get("id")
        self._names = [given["name"] for given in request["inputs"]]
        return [{**given, "data": _values(given)} for given in request["inputs"]]

    def format_output(self, data: Any) -> Any:
        model = self.context.manifest["model"]
        return [
            {
                "id": self._id or self.context.get_request_id(0),
                "model_name": model["modelName"],
                "model_version": model.get("modelVersion"),
                "outputs": [_output(name, values) for name, values in zip(self._names, data, strict=False)],
            }
        ]


def _values(given: dict[str, Any]) -> Any:
    if given["datatype"] == "BYTES":
        return given["data"][0]
    dtype = _DTYPES.get(given["datatype"], given["datatype"].lower())
    return np.asarray(given["data"], dtype).reshape(given["shape"]).tolist()


def _output(name: str, values: Any) -> dict[str, Any]:
    array = np.asarray(values).reshape(-1)
    datatype = (
        "BYTES" if array.dtype.kind in "OSU" else _NAMES.get(array.dtype.name, array.dtype.name.upper())
    )
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}
