"""Finding things by name, in requests, responses and configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backline.workers.child.triton.requests import InferenceRequest
from backline.workers.child.triton.responses import InferenceResponse
from backline.workers.child.triton.tensor import Tensor


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The input of a request, None if it has none of that name."""
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The output of a response, None if it has none of that name."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """The section of an input in a configuration, None if there is none."""
    return _named(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """The section of an output in a configuration, None if there is none."""
    return _named(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that the model gives any number of responses."""
    policy = model_config.get("model_transaction_policy")
    return bool(policy["decoupled"]) if policy is not None else False


def _named(sections: Iterable[Any], name: str) -> Any:
    return next((section for section in sections if section["name"] == name), None)
