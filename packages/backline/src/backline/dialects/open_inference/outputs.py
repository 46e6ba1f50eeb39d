"""Classifies outputs, or stores them in shared memory, as the request specifies."""

from __future__ import annotations

import numpy as np

from backline.dialects.open_inference.plan import InferPlan
from backline.engine.engine import Engine
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor, element_count


def wanted_outputs(engine: Engine, plan: InferPlan, response: InferResponse) -> list[Tensor]:
    """Returns the outputs, classified or put into shared memory where `plan` requests it.

    Raises BacklineError if an output cannot be classified, or does not fit into its shared memory.
    """
    outputs = classified_outputs(engine, plan, response) if plan.classes else response.outputs
    return outputs if plan.shared is None else plan.shared.store(outputs)


def classify(tensor: Tensor, count: int, labels: tuple[str, ...], *, batched: bool) -> Tensor:
    """Returns the `count` highest values of a tensor, or of each of its rows if `batched`, as a BYTES tensor.

    An element is "value:index" or "value:index:label"; floating-point values have six decimals, as the
    classification extension specifies. The shape is [batch, n] or [n] with n = min(count, classes). Raises
    InvalidArgument for BYTES and BOOL.
    """
    if tensor.datatype in (DataType.BYTES, DataType.BOOL):
        raise InvalidArgument(
            f"class result not available for output '{tensor.name}' due to unsupported type"
            f" '{tensor.datatype.name}'"
        )
    values = tensor.data
    if tensor.datatype is DataType.BF16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif tensor.datatype is DataType.FP16:
        values = values.astype(np.float32)
    rows = tensor.shape[0] if batched and tensor.shape else 1
    width = element_count(tensor.shape[1:] if batched else tensor.shape)
    values = values.reshape(rows, width)
    best = min(count, width)
    # Sorting reversed rows and reversing the result puts the highest value first, and ties in index order.
    order = width - 1 - np.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :best]
    form = "%f:%d" if values.dtype.kind == "f" else "%d:%d"
    entries = np.empty((rows, best), np.object_)
    for row in range(rows):
        for column in range(best):
            index = int(order[row, column])
            text = form % (values[row, index], index)
            if index < len(labels):
                text += ":" + labels[index]
            entries[row, column] = text.encode()
    shape = (rows, best) if batched else (best,)
    return Tensor(tensor.name, DataType.BYTES, shape, entries.reshape(shape))


def classified_outputs(engine: Engine, plan: InferPlan, response: InferResponse) -> list[Tensor]:
    """Returns the outputs of `response`, classified where `plan` requests it.

    Raises InvalidArgument if such an output is BYTES or BOOL.
    """
    model = engine.find(response.model_name, response.model_version)
    labels = {spec.name: spec.labels for spec in model.signature.outputs}
    return [
        classify(
            output, plan.classes[output.name], labels.get(output.name, ()), batched=model.max_batch_size > 0
        )
        if output.name in plan.classes
        else output
        for output in response.outputs
    ]
