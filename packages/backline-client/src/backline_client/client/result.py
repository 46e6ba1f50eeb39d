"""The result of an inference: the model's outputs by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np

from backline_client.client.errors import ProtocolError
from backline_client.client.records import ModelMetadata
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Tensor


class InferResult(Mapping[str, np.ndarray]):
    """A mapping of output names to arrays, in the order of the model's outputs.

    Use `result["note"]`, or `result.note` if the name is an identifier without a leading underscore that
    this class does not use itself (such as `id`). Arrays are usually views of the received bytes and may be
    read-only: copy before writing. BYTES outputs are object arrays of `bytes`, or of the values if a Python
    model returns a dict or a list. BF16 outputs are converted to float32, as numpy has no bfloat16.
    """

    __slots__ = ("_arrays", "id", "model_name", "model_version", "parameters")

    def __init__(self, response: InferResponse, metadata: ModelMetadata | None = None) -> None:
        """`metadata` says which outputs have JSON as their elements."""
        documents = () if metadata is None else [spec.name for spec in metadata.outputs if spec.json]
        self._arrays = {
            tensor.name: _documents(tensor) if tensor.name in documents else _array(tensor)
            for tensor in response.outputs
        }
        self.model_name = response.model_name
        self.model_version = response.model_version
        self.id = response.id
        self.parameters: dict[str, Parameter] = response.parameters or {}

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(
                f"no output '{name}' in the result; it has {', '.join(self._arrays) or 'none'}"
            ) from None

    def __getattr__(self, name: str) -> np.ndarray:
        # copy, pickle and numpy look up dunder names, which must not find an output.
        if not name.startswith("_") and name in self._arrays:
            return self._arrays[name]
        raise AttributeError(
            f"no output '{name}' in the result; it has"
            f" {', '.join(self._arrays) if name != '_arrays' else 'none'}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        outputs = ", ".join(
            f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._arrays.items()
        )
        return f"<InferResult of {self.model_name} version {self.model_version or '?'}: {outputs}>"


def _documents(tensor: Tensor) -> np.ndarray:
    """Returns the values whose JSON is in the elements. Raises ProtocolError for text that is no JSON."""
    values = np.empty(tensor.data.size, np.object_)
    for index, element in enumerate(tensor.data.reshape(-1).tolist()):
        try:
            values[index] = json.loads(element)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"output '{tensor.name}' must be JSON, but is other text: {error}") from None
    return values.reshape(tensor.shape)


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.datatype is DataType.BF16:  # bfloat16 is the upper half of a float32
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return tensor.data if tensor.data.flags.aligned else tensor.data.copy()
