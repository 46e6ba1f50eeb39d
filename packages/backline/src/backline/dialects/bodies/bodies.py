"""The table of bodies: for each media type, how it becomes inputs by name, and how outputs become it.

A body has a column for each input of a model, and a row for each item. The model's signature gives the
datatypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from backline.dialects.bodies import arrow, csv_text
from backline.dialects.bodies.columns import Inputs, Labels
from backline_client.values.tensor import Buffer, Tensor

CSV, ARROW = "text/csv", "application/vnd.apache.arrow.stream"


class Body(Struct, frozen=True):
    """A form of bodies.

    `read` returns the inputs in a body, given what the model's inputs are. It raises InvalidArgument for a
    body that does not fit them, PayloadTooLarge for one that is too costly to read, and UnsupportedMediaType
    if a library is missing. `write` returns the body with outputs, given the labels of outputs by name. It
    raises NotAcceptable for outputs that the form cannot hold. Unless `quick`, neither may be called on the
    event loop, however small the body is.
    """

    read: Callable[[Inputs, Buffer], dict[str, Tensor]]
    write: Callable[[Sequence[Tensor], Labels], bytes]
    quick: bool = True


#: The bodies other than JSON, which is the form of all other bodies too (see `json_rows` and `values`).
BODIES: Final[Mapping[str, Body]] = {
    CSV: Body(csv_text.read, csv_text.write),
    ARROW: Body(arrow.read, arrow.write, quick=False),  # the import of pyarrow takes up to a second
}
