"""The models that the rows call, as a server must offer them: names, inputs, outputs and what they compute."""

from __future__ import annotations

from dataclasses import dataclass

from oip_conformance.tensors import DATATYPES


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output: -1 in the shape is any size; the batch dimension of a model with batches is not in it."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SuiteModel:
    """One model of the suite."""

    name: str
    about: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    #: The largest batch, or 0 for a model without a batch dimension.
    batch: int = 0
    versions: tuple[str, ...] = ("1",)
    #: A request has any number of responses.
    decoupled: bool = False
    #: A server that is ready without it is complete: the repository rows load it.
    optional: bool = False

    def shape(self, port: Port) -> tuple[int, ...]:
        """The shape that the model's metadata must show."""
        return (-1, *port.shape) if self.batch else port.shape


def identity(datatype: str) -> str:
    """The name of the identity model of a datatype."""
    return f"identity_{datatype.lower()}"


def _one_to_one(name: str, about: str, datatype: str, shape: tuple[int, ...], **options: object) -> SuiteModel:
    ports = (Port("INPUT", datatype, shape),), (Port("OUTPUT", datatype, shape),)
    return SuiteModel(name, about, *ports, **options)  # type: ignore[arg-type]


_ROWS = (4,)
MODELS = {
    model.name: model
    for model in (
        *(
            _one_to_one(identity(datatype), f"returns its input, {datatype} of any two dimensions", datatype, (-1, -1))
            for datatype in DATATYPES
        ),
        SuiteModel(
            "sum",
            "adds and subtracts rows of four numbers, up to eight rows in a batch",
            (Port("LEFT", "FP32", _ROWS), Port("RIGHT", "FP32", _ROWS)),
            (Port("SUM", "FP32", _ROWS), Port("DIFFERENCE", "FP32", _ROWS)),
            batch=8,
        ),
        SuiteModel(
            "strings",
            "joins the texts of two inputs, element by element",
            (Port("LEFT", "BYTES", (-1,)), Port("RIGHT", "BYTES", (-1,))),
            (Port("JOINED", "BYTES", (-1,)),),
        ),
        _one_to_one("versioned", "adds its version's number to its input", "INT32", (-1,), versions=("1", "2")),
        _one_to_one("sequence", "returns the sum of its inputs since the sequence's start", "INT32", (1,), batch=1),
        SuiteModel(
            "repeat",
            "answers once for each element of INPUT, DELAY milliseconds apart; a negative element is an error",
            (Port("INPUT", "INT32", (-1,)), Port("DELAY", "INT32", (1,))),
            (Port("OUTPUT", "INT32", (1,)),),
            decoupled=True,
        ),
        _one_to_one("slow", "returns its input after as many milliseconds", "INT32", (1,)),
        _one_to_one("failing", "fails for every request", "INT32", (1,)),
        SuiteModel(
            "text",
            "returns a text in capitals",
            (Port("text_input", "BYTES", (1,)),),
            (Port("text_output", "BYTES", (1,)),),
        ),
        _one_to_one(
            "spare", "returns its input; the repository rows load and unload it", "INT32", (-1,), optional=True
        ),
    )
}
