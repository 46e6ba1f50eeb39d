"""Applies the parameters of a request to its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backline.dialects.open_inference.plan import InferPlan
from backline.engine.values.parameters import WrongType, read_parameters, shown

#: The parameter that marks the final response to a request on a stream.
FINAL = "triton_final_response"
MAX_CLASSES = 1_000_000


def apply_parameters(plan: InferPlan, given: Mapping[str, Any]) -> None:
    """Sets a request's parameters on its plan. Raises InvalidArgument or Unsupported."""
    read = read_parameters(given)
    plan.binary_default = read.binary_output
    plan.empty_final = read.empty_final
    plan.priority = read.priority
    plan.timeout = read.timeout
    plan.sequence = read.sequence
    plan.parameters = read.others


def class_count(output: str, value: object) -> int:
    """Returns the number of classes requested of an output.

    Raises InvalidArgument unless it is a positive int.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WrongType(
            "classification",
            "unsigned-integer",
            f"parameter 'classification' of output '{output}' must be a positive integer, got {shown(value)}",
        )
    return min(value, MAX_CLASSES)
