"""Tensors in Triton's trace file: their elements as one text."""

from __future__ import annotations

from typing import Any

import numpy as np

from backline.engine.datatypes import DataType
from backline.engine.tensor import Tensor

#: Elements of a tensor that are told; of a larger one the first.
MAX_ELEMENTS = 16 * 1024


def tensor_document(tensor: Tensor) -> dict[str, str]:
    """Name, elements, shape and datatype, all as texts.

    Floating point numbers have six significant digits, as C++ prints them; BYTES stand in double quotes, with what is no UTF-8 replaced.
    Of a tensor of more than MAX_ELEMENTS the first are there, and "..." behind them.
    """
    elements = tensor.data.reshape(-1)
    first = elements[:MAX_ELEMENTS]
    if tensor.datatype is DataType.BF16:  # its bits are the upper half of those of an FP32
        first = (first.astype(np.uint32) << 16).view(np.float32)
    told = [_text(element) for element in first.tolist()]
    if elements.size > MAX_ELEMENTS:
        told.append("...")
    return {
        "name": tensor.name,
        "data": ",".join(told),
        "shape": ",".join(map(str, tensor.shape)),
        "dtype": tensor.datatype.name,
    }


def _text(element: Any) -> str:
    if isinstance(element, bytes):
        return f'"{element.decode(errors="replace")}"'
    if isinstance(element, bool):
        return str(int(element))
    return f"{element:g}" if isinstance(element, float) else str(element)
