"""The parameters of requests: which are the protocol's own, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backline.dialects.open_inference.plan import InferPlan
from backline.engine.errors import InvalidArgument
from backline.engine.messages import Parameter

RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
#: Asks for an empty last answer on a stream where the last answer with content is not known to be the last. Here it always is.
EMPTY_FINAL = "triton_enable_empty_final_response"
#: The parameter of an answer on a stream that says whether it is the last one to its request.
FINAL = "triton_final_response"
MAX_CLASSES = 1_000_000


def apply_parameters(plan: InferPlan, given: Mapping[str, Any]) -> None:
    """Notes the parameters of a request on its plan: the protocol's own where they belong, the others for the model.

    `timeout` is in microseconds on the wire. The sequence parameters go on to the model's parameters, checked. Raises InvalidArgument.
    """
    parameters: dict[str, Parameter] = {}
    for key, value in given.items():
        if key == "binary_data_output":
            plan.binary_default = boolean(key, value)
        elif key == "priority":
            plan.priority = unsigned(key, value)
        elif key == "timeout":
            plan.timeout = unsigned(key, value) / 1e6 or None
        elif key == EMPTY_FINAL:
            boolean(key, value)
        elif key.startswith("triton_"):
            raise InvalidArgument(RESERVED)
        else:
            if key == "sequence_id":
                if not isinstance(value, str):
                    unsigned(key, value)
            elif key in ("sequence_start", "sequence_end"):
                boolean(key, value)
            parameters[key] = value
    plan.parameters = parameters or None


def unsigned(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise InvalidArgument(f"parameter '{key}' must be an unsigned integer of 64 bits, got {value!r}")
    return value


def boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter '{key}' must be true or false, got {value!r}")
    return value


def class_count(output: str, value: object) -> int:
    """The number of classes wanted of an output. Raises InvalidArgument unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"parameter 'classification' of output '{output}' must be a positive integer, got {value!r}")
    return min(value, MAX_CLASSES)
