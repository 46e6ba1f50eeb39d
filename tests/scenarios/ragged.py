"""Inputs of different shapes in one batch."""

from __future__ import annotations

import numpy as np

from scenarios.batching import rows
from scenarios.repository import Served, instance_group, tensor, tensors
from scenarios.scenario import scenario
from scenarios.session import Session

_KINDS = {
    "COUNT": "BATCH_ELEMENT_COUNT",
    "ENDS": "BATCH_ACCUMULATED_ELEMENT_COUNT",
    "BOUNDS": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
    "MOST": "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
    "SHAPES": "BATCH_ITEM_SHAPE",
    "FLAT": "BATCH_ITEM_SHAPE_FLATTEN",
}
_RAGGED = tensor("IN", dims="-1", extra="allow_ragged_batch: true ")
_OUTPUTS = [tensor("OUT", dims="-1"), tensor("RUN"), tensor("BATCH", "STRING")]


def ragged(*inputs: str, further: str = "", max_batch_size: int = 8) -> Served:
    """The model `worker.py`, whose input IN is ragged."""
    shape = f"max_batch_size: {max_batch_size}\n{tensors([_RAGGED, *inputs], _OUTPUTS)}"
    return Served(f"{shape}{instance_group()}dynamic_batching {{ }}\n{further}", "worker")


MODELS: dict[str, Served] = {
    "ragged": ragged(),
    "ragged_plus": ragged(tensor("PLUS", dims="-1", extra="optional: true ")),
}


@scenario("http", "grpc")
def ragged_inputs_are_batched(session: Session) -> None:
    with session.busy("ragged"):
        for value in ([[1]], [[2, 2]], [[3, 3, 3]], [[4]]):
            session.queue("ragged", value)


@scenario("http", "grpc")
def ragged_inputs_with_several_rows(session: Session) -> None:
    with session.busy("ragged"):
        session.queue("ragged", [[1, 1], [2, 2]])
        session.queue("ragged", [[3, 3, 3]])
        session.queue("ragged", rows(4, 5, 6))


@scenario("http", "grpc")
def a_batch_of_ragged_inputs_does_not_exceed_the_maximum(session: Session) -> None:
    with session.busy("ragged"):
        session.queue("ragged", rows(*range(1, 7)))
        session.queue("ragged", [[7, 7], [8, 8]])
        session.queue("ragged", [[9, 9, 9]])


@scenario("http", "grpc")
def one_input_is_ragged_and_another_is_not(session: Session) -> None:
    with session.busy("ragged_plus"):
        session.queue("ragged_plus", [[1]], inputs={"PLUS": np.array([[10]], np.int32)})
        session.queue("ragged_plus", [[2, 2]], inputs={"PLUS": np.array([[20]], np.int32)})
        session.queue("ragged_plus", [[3, 3]], inputs={"PLUS": np.array([[30, 30]], np.int32)})


@scenario("http", "grpc")
def an_optional_input_with_a_ragged_one(session: Session) -> None:
    with session.busy("ragged_plus"):
        session.queue("ragged_plus", [[1]])
        session.queue("ragged_plus", [[2, 2]])
        session.queue("ragged_plus", [[3]], inputs={"PLUS": np.array([[30]], np.int32)})


@scenario("http", "grpc")
def an_error_of_one_ragged_request(session: Session) -> None:
    with session.busy("ragged"):
        session.queue("ragged", [[1]])
        session.queue("ragged", [[2, 2]], parameters={"fail": "no"})
        session.queue("ragged", [[3, 3, 3]])


@scenario("http", "grpc")
def ragged_inputs_have_a_fixed_rank(session: Session) -> None:
    session.infer("ragged", np.zeros((1, 2, 2), np.int32))
