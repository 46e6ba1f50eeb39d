"""Whether a request fits a model, and the error if it does not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor

FIXED = Signature((TensorSpec("x", DataType.FP32, (-1, 16)),), (TensorSpec("y", DataType.FP32, (-1, 16)),))
VARYING = Signature(
    (TensorSpec("a", DataType.FP32, (-1, -1)), TensorSpec("b", DataType.INT64, (-1,))),
    (TensorSpec("y", DataType.FP32, (-1, -1)),),
)


def tensor(name: str, datatype: DataType, *shape: int) -> Tensor:
    return Tensor(name, datatype, shape, np.zeros(shape, datatype.dtype))


def request(*tensors: Tensor, outputs: tuple[str, ...] | None = None, id: str = "") -> Ticket:
    return Ticket(
        InferRequest("m", {one.name: one for one in tensors}, outputs=outputs, id=id), lambda *_: None
    )


def test_a_request_that_fits_gets_its_batch_size() -> None:
    asked = request(tensor("x", DataType.FP32, 5, 16))

    RequestCheck("m", FIXED, 8, strict=True)(asked)

    assert asked.batch_size == 5


def test_requests_that_differ_in_a_varying_dimension_do_not_share_a_batch() -> None:
    check = RequestCheck("m", VARYING, 8, strict=True)
    short = request(tensor("a", DataType.FP32, 1, 3), tensor("b", DataType.INT64, 1))
    long = request(tensor("a", DataType.FP32, 1, 4), tensor("b", DataType.INT64, 1))

    check(short)
    check(long)

    assert short.batch_key != long.batch_key


def test_a_shape_that_passed_before_gives_the_same_batch_but_excuses_nothing_else() -> None:
    varying = Signature((TensorSpec("x", DataType.FP32, (-1, -1)),), FIXED.outputs)
    check = RequestCheck("m", varying, 8, strict=True)
    x = tensor("x", DataType.FP32, 2, 16)
    first, second = request(x), request(x)

    check(first)
    check(second)

    assert (second.batch_size, second.batch_key) == (first.batch_size, first.batch_key) == (2, (16,))
    for bad in (
        request(tensor("x", DataType.INT32, 2, 16)),
        request(tensor("z", DataType.FP32, 2, 16)),
        request(x, tensor("z", DataType.FP32, 1)),
        request(x, outputs=("q",)),
        request(tensor("x", DataType.FP32, 9, 16)),
    ):
        with pytest.raises(InvalidArgument):
            check(bad)


def test_requests_that_name_outputs_are_checked_completely_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check = RequestCheck("m", FIXED, 8, strict=True)
    checked: list[Ticket] = []
    check_all = RequestCheck._check
    monkeypatch.setattr(
        RequestCheck, "_check", lambda self, ticket: (checked.append(ticket), check_all(self, ticket))
    )
    x = tensor("x", DataType.FP32, 2, 16)
    asked = [request(x, outputs=("y",)) for _ in range(3)]

    for one in asked:
        check(one)
    with pytest.raises(InvalidArgument, match="unexpected inference output 'z'"):
        check(request(x, outputs=("z",)))
    for _ in range(2):
        check(request(x, outputs=("y", "y")))  # not remembered: a client may repeat names any number of times

    assert [one.batch_size for one in asked] == [2, 2, 2]
    assert len(checked) == 4


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(), "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'm'."),
        (request(id="7"), "[request id: 7] expected 1 inputs"),
        (
            request(tensor("x", DataType.INT32, 1, 16)),
            "inference input 'x' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            request(tensor("x", DataType.FP32, 1, 17)),
            "unexpected shape for input 'x' for model 'm'. Expected [-1,16], got [1,17].",
        ),
        (request(tensor("x", DataType.FP32, 16)), "Expected [-1,16], got [16]."),
        (request(tensor("x", DataType.FP32, 9, 16)), "inference request batch-size must be <= 8 for 'm'"),
        (request(tensor("x", DataType.FP32, 0, 16)), "has an empty batch"),
        (
            request(tensor("x", DataType.FP32, 1, 16), tensor("z", DataType.FP32, 1)),
            "expected 1 inputs but got 2 inputs for model 'm'. Got input(s) ['x','z'], but missing",
        ),
        (
            request(tensor("x", DataType.FP32, 1, 16), outputs=("q",)),
            "unexpected inference output 'q' for model 'm', expected one of y",
        ),
    ],
)
def test_a_request_that_does_not_fit_gets_the_reason(asked: InferRequest, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(reason)):
        RequestCheck("m", FIXED, 8, strict=True)(asked)


def test_a_batch_above_a_measured_limit_runs_alone() -> None:
    asked = request(tensor("x", DataType.FP32, 900, 16))

    RequestCheck("m", FIXED, 8, strict=False)(asked)

    assert asked.batch_size == 900


def test_a_batch_without_items_runs_where_no_limit_was_configured() -> None:
    asked = request(tensor("x", DataType.FP32, 0, 16))

    RequestCheck("m", FIXED, 8, strict=False)(asked)

    assert asked.batch_size == 0


def test_an_empty_batch_must_be_empty_in_all_inputs() -> None:
    for rows in ((0, 3), (3, 0)):
        asked = request(tensor("a", DataType.FP32, rows[0], 3), tensor("b", DataType.INT64, rows[1]))
        with pytest.raises(InvalidArgument, match="input 'b' batch size does not match other inputs for 'm'"):
            RequestCheck("m", VARYING, 8, strict=False)(asked)


def test_inputs_must_agree_on_the_batch_size() -> None:
    asked = request(tensor("a", DataType.FP32, 2, 3), tensor("b", DataType.INT64, 3))

    with pytest.raises(InvalidArgument, match="input 'b' batch size does not match other inputs for 'm'"):
        RequestCheck("m", VARYING, 8, strict=True)(asked)


def test_inputs_of_different_first_dimensions_run_alone_where_the_batch_was_proved() -> None:
    asked, same = (
        request(tensor("a", DataType.FP32, 2, 3), tensor("b", DataType.INT64, 3)) for _ in range(2)
    )

    for one in (asked, same):
        RequestCheck("m", VARYING, 8, strict=False, proved=True)(one)

    assert asked.batch_size == 1
    assert asked.batch_key not in (None, same.batch_key)


def test_a_scalar_may_be_sent_as_one_element() -> None:
    signature = Signature((TensorSpec("rate", DataType.INT64, ()),), (TensorSpec("y", DataType.FP32, ()),))
    asked = request(tensor("rate", DataType.INT64, 1))

    RequestCheck("m", signature, 0, strict=False)(asked)

    assert asked.request.inputs["rate"].data.shape == ()
