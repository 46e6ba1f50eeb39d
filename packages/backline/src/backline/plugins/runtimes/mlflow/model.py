"""Models of MLflow's flavour `python_function` in a worker process, whose environment has MLflow.

The signature that was saved with the model names its columns. Each is an input of its own, and the model gets
a DataFrame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from backline.workers.channel.protocol import Spec, WorkerLoad, WorkerLoaded
from backline.workers.child.caller import Caller
from backline.workers.child.requests import RequestBatch, WorkerRequest
from backline.workers.child.tracebacks import reason
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.tensor import Tensor

#: The name of the only output, unless the signature names the outputs.
OUTPUT: Final = "predict"
#: MLflow's types of columns (mlflow.types.DataType).
_TYPES: Final = {
    "boolean": DataType.BOOL,
    "integer": DataType.INT32,
    "long": DataType.INT64,
    "float": DataType.FP32,
    "double": DataType.FP64,
    "string": DataType.BYTES,
    "binary": DataType.BYTES,
    "datetime": DataType.BYTES,
}


def load(message: WorkerLoad, caller: Caller) -> MlFlowModel:
    """Loads the folder of a model. Raises InvalidArgument if it has no signature with named columns, or if
    MLflow is not installed in this environment.
    """
    try:
        from mlflow import pyfunc
    except ImportError as error:
        raise InvalidArgument(
            f"model '{message.name}' needs MLflow ({error}): add mlflow to the requirements.txt of its folder"
        ) from None
    return MlFlowModel(message, pyfunc.load_model(message.path))


class MlFlowModel:
    """A loaded model, which runs each request on its own."""

    def __init__(self, message: WorkerLoad, model: Any) -> None:
        self._name, self._folder = message.name, message.folder
        self._model = model
        columns = _columns(message.name, model.metadata.get_input_schema())
        self._columns = {column.name: (_type(message.name, column), column) for column in columns}
        batch = message.max_batch_size or 0
        dims = [] if batch else [-1]
        inputs = [
            Spec(name, datatype.name, dims, not getattr(column, "required", True), column=True)
            for name, (datatype, column) in self._columns.items()
        ]
        outputs = model.metadata.get_output_schema()
        if outputs is not None and outputs.has_input_names() and not outputs.is_tensor_spec():
            specs = [Spec(one.name, _type(message.name, one).name, dims) for one in outputs.inputs]
        else:
            specs = [
                Spec(name, DataType.from_dtype(array.dtype).name, dims + list(array.shape[1:]))
                for name, array in self._try().items()
            ]
        self._outputs = [spec.name for spec in specs]
        self.loaded = WorkerLoaded(
            inputs, specs, batch, platform="mlflow_pyfunc", idempotent=message.idempotent
        )

    def _try(self) -> Mapping[str, np.ndarray]:
        """Returns the outputs for two rows of zeros and empty strings, to find their names and types."""
        zeros = {
            name: Tensor(name, datatype, (2,), _zeros(datatype))
            for name, (datatype, _) in self._columns.items()
        }
        try:
            return self._predict(zeros)
        except Exception as error:
            raise InvalidArgument(
                f"model '{self._name}' has a signature without outputs, and a trial run on two rows failed"
                f" ({type(error).__name__}: {error}): save it with"
                " mlflow.models.infer_signature(inputs, outputs)"
            ) from None

    def execute(self, batch: RequestBatch) -> None:
        for request in batch.requests:
            self._run(request)

    def _run(self, request: WorkerRequest) -> None:
        lengths = {name: len(tensor.data) for name, tensor in request.inputs.items()}
        if len(set(lengths.values())) > 1:
            request.fail(InvalidArgument(f"the columns differ in the number of rows: {lengths}"))
            return
        from mlflow.exceptions import MlflowException

        try:
            found = self._predict(request.inputs)
        except (ValueError, MlflowException) as error:  # MLflow's for rows that contradict the signature
            request.fail(InvalidArgument(f"model '{self._name}' refuses the input: {error}"))
            return
        except Exception as error:
            request.fail(Internal(reason(error, self._folder)))
            return
        wanted = self._outputs if request.wanted is None else request.wanted
        missing = [name for name in wanted if name not in found]
        if missing:
            request.fail(Internal(f"model '{self._name}' returned no '{missing[0]}', only {list(found)}"))
            return
        request.answer(
            [
                Tensor(name, DataType.from_dtype(found[name].dtype), found[name].shape, found[name])
                for name in wanted
            ]
        )

    def _predict(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        import pandas

        table = pandas.DataFrame(
            {
                name: _series(pandas, column, inputs[name].data)
                for name, (_, column) in self._columns.items()
                if name in inputs
            }
        )
        return _arrays(self._model.predict(table))

    def close(self) -> None:
        self._model = None


def _columns(model: str, schema: Any) -> list[Any]:
    if schema is None or schema.is_tensor_spec() or not schema.has_input_names():
        raise InvalidArgument(
            f"model '{model}' has no signature with named columns: save it with"
            " signature=mlflow.models.infer_signature(a DataFrame, its predictions)"
        )
    return list(schema.inputs)


def _type(model: str, column: Any) -> DataType:
    kind = getattr(column.type, "name", str(column.type))
    if kind not in _TYPES:
        raise InvalidArgument(
            f"column '{column.name}' of model '{model}' is of MLflow's type {kind}, which no input can have:"
            f" expected one of {', '.join(_TYPES)}"
        )
    return _TYPES[kind]


def _zeros(datatype: DataType) -> np.ndarray:
    array = np.zeros(2, datatype.dtype)
    if datatype is DataType.BYTES:
        array.fill(b"")
    return array


def _series(pandas: Any, column: Any, array: np.ndarray) -> Any:
    """Returns a column in the type that MLflow expects. An empty string is a missing value."""
    if array.dtype.kind != "O":
        return pandas.Series(array)
    kind = getattr(column.type, "name", "")
    values = [one or None for one in array.tolist()]
    if kind != "binary":
        try:
            values = [one if one is None else one.decode() for one in values]
        except UnicodeDecodeError:
            raise ValueError(f"column '{column.name}' has a string that is not UTF-8") from None
    series = pandas.Series(values, dtype=object)
    return pandas.to_datetime(series) if kind == "datetime" else series


def _arrays(answer: Any) -> dict[str, np.ndarray]:
    """Returns what a model returned, in any of the forms that MLflow allows, as arrays by name."""
    if hasattr(answer, "columns"):  # a DataFrame
        return {str(name): _array(answer[name]) for name in answer.columns}
    if isinstance(answer, Mapping):
        return {str(name): _array(value) for name, value in answer.items()}
    return {OUTPUT: _array(answer)}


def _array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "OSUM":
        return array
    texts = np.empty(array.size, np.object_)
    texts[:] = [_text(one) for one in array.reshape(-1).tolist()]
    return texts.reshape(array.shape)


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return b"" if missing else str(value).encode()
