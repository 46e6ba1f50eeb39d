"""The sequence extension: requests that belong together."""

from __future__ import annotations

from typing import Any

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Level
from oip_conformance.target import Target, equal, outputs, refused, rpc_outputs
from oip_conformance.tensors import Tensor

MUST, SHOULD, OBSERVED = Level
area = Area("sequence", "sequence")


def _step(t: Target, value: int, **parameters: Any) -> Answer:
    return t.infer("sequence", Tensor("INPUT", "INT32", (1, 1), [value]), parameters=parameters)


def _sums(t: Target, id: int | str, values: list[int]) -> list[int]:
    """The outputs of a whole sequence."""
    found = []
    for index, value in enumerate(values):
        marks = {"sequence_start": index == 0, "sequence_end": index == len(values) - 1}
        found.append(outputs(_step(t, value, sequence_id=id, **marks))[t.output_names("sequence")[0]].data[0])
    return found


@area.row("state", MUST, spec.SEQUENCE_ID, "sequence")
def state(t: Target) -> None:
    """The requests of a sequence reach the same state: the sums of 1, 2 and 3 are 1, 3 and 6."""
    equal(_sums(t, 7001, [1, 2, 3]), [1, 3, 6], "the sums")


@area.row("text-id", SHOULD, spec.SEQUENCE_STRING, "sequence")
def text_id(t: Target) -> None:
    """The id of a sequence may be a text."""
    equal(_sums(t, "suite-text-id", [4, 5]), [4, 9], "the sums")


@area.row("start", MUST, spec.SEQUENCE_START, "sequence")
def start(t: Target) -> None:
    """A new start under an id that was used before begins anew."""
    equal(_sums(t, 7002, [10, 1]), [10, 11], "the sums")
    equal(_sums(t, 7002, [5, 1]), [5, 6], "the sums")


@area.row("interleaved", MUST, spec.SEQUENCE_ID, "sequence")
def interleaved(t: Target) -> None:
    """Two sequences at the same time keep their states apart."""
    name = t.output_names("sequence")[0]
    found: dict[int, list[int]] = {7003: [], 7004: []}
    for index in range(3):
        for id, values in ((7003, [1, 1, 1]), (7004, [100, 100, 100])):
            marks = {"sequence_start": index == 0, "sequence_end": index == 2}
            found[id].append(outputs(_step(t, values[index], sequence_id=id, **marks))[name].data[0])
    equal(found, {7003: [1, 2, 3], 7004: [100, 200, 300]}, "the sums")


@area.row("no-start", OBSERVED, spec.SEQUENCE_START, "sequence")
def no_start(t: Target) -> str:
    """A first request without sequence_start."""
    answer = _step(t, 1, sequence_id=7005)
    return f"refused with {answer.status}" if answer.status >= 400 else "taken"


@area.row("no-id", MUST, spec.SEQUENCE_NEEDS_ID, "sequence")
def no_id(t: Target) -> None:
    """sequence_start without an id is an error."""
    refused(_step(t, 1, sequence_start=True))


@area.row("grpc", MUST, spec.SEQUENCE_ID, "sequence")
def grpc_sequence(t: Target) -> None:
    """The parameters mean the same over gRPC, on a stream."""
    requests = [
        rpc.infer_request(
            t.name("sequence"),
            t.tensors("sequence", Tensor("", "INT32", (1, 1), [value])),
            given={"sequence_id": 7006, "sequence_start": value == 1, "sequence_end": value == 3},
        )
        for value in (1, 2, 3)
    ]
    found = [rpc_outputs(response.infer_response) for response in t.stream(requests)]
    equal([tensor.data[0] for entry in found for tensor in entry.values()], [1, 3, 6], "the sums")
