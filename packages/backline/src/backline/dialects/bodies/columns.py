"""The columns of bodies: which inputs they are, and the columns that outputs become."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from msgspec import Struct

from backline_client.values.errors import InvalidArgument, NotAcceptable
from backline_client.values.signature import TensorSpec
from backline_client.values.spelling import nearest
from backline_client.values.tensor import Tensor

#: The labels of outputs by name; empty for outputs without labels.
Labels: TypeAlias = Mapping[str, Sequence[str]]


class Inputs(Struct, frozen=True):
    """The inputs of a model, by name."""

    model: str
    specs: Mapping[str, TensorSpec]

    def check_names(self, what: str, names: Collection[str]) -> None:
        """Raises InvalidArgument if a column is not an input, or a required input has no column. `what` is
        the body or the row that has these columns, for the error text.
        """
        for name in names:
            if name not in self.specs:
                raise unknown_input(self.model, self.specs, name)
        missing = [name for name, spec in self.specs.items() if name not in names and not spec.optional]
        if missing:
            listed = ", ".join(f"'{name}'" for name in missing)
            raise InvalidArgument(
                f"{what} lacks {listed}, which model '{self.model}' needs; where a value is missing, leave it"
                " empty or send null"
            )

    def check_rows(self, count: int) -> None:
        """Raises InvalidArgument for a body without rows."""
        if not count:
            raise InvalidArgument(f"the body has no rows: send at least one to model '{self.model}'")


def unknown_input(model: str, names: Collection[str], name: str) -> InvalidArgument:
    """Returns the error for a name that is not an input of the model."""
    near = nearest(name, list(names))
    hint = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(names) or 'no inputs'}"
    return InvalidArgument(f"'{name[:64]}' is not an input of model '{model}': {hint}")


def row_count(outputs: Sequence[Tensor], form: str) -> int:
    """Returns the number of rows that all outputs have.

    Raises NotAcceptable if they differ, or if an output has no rows.
    """
    counts = {tensor.shape[0] if tensor.shape else -1 for tensor in outputs}
    if len(counts) == 1 and -1 not in counts:
        return counts.pop()
    shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in outputs)
    raise NotAcceptable(
        f"the outputs cannot be sent as {form}, because they differ in the number of rows: {shapes}; ask for"
        " JSON"
    )


def split_columns(tensor: Tensor, labels: Sequence[str], form: str) -> list[tuple[str, np.ndarray]]:
    """Returns an output as columns with one value for each row: several for an output with several values,
    named after their labels or numbers, such as `predict_proba.yes`.

    Raises NotAcceptable for an output with more dimensions.
    """
    data = tensor.data.reshape(tensor.shape)
    if data.ndim == 1:
        return [(tensor.name, data)]
    if data.ndim != 2:
        raise NotAcceptable(
            f"output '{tensor.name}' has the shape {list(tensor.shape)}, but {form} holds at most a list of"
            " values for each row; ask for JSON"
        )
    names = labels if len(labels) == data.shape[1] else [str(index) for index in range(data.shape[1])]
    return [(f"{tensor.name}.{name}", data[:, index]) for index, name in enumerate(names)]
