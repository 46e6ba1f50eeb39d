"""Builds and checks InferPlans (requests without their data and ids), for both REST and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from backline.dialects.input_plan import InputPlan, check_bytes_elements
from backline.dialects.open_inference.plan import InferPlan, prefix
from backline.dialects.open_inference.shared_memory import (
    REGION,
    RegionSlice,
    SharedInput,
    SharedTensors,
    read_slice,
)
from backline.engine.engine import Engine
from backline.engine.parameters import WrongType, boolean, read_parameters, shown
from backline.engine.request_check import RequestCheck
from backline.engine.shared_memory import SharedMemory
from backline.engine.ticket import unsubmitted
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Shape, Tensor

#: The parameter that marks the final response to a request on a stream.
FINAL = "triton_final_response"
MAX_CLASSES = 1_000_000


def apply_parameters(plan: InferPlan, given: Mapping[str, Any]) -> None:
    """Stores the parameters of a request in the plan. Raises InvalidArgument for an invalid parameter, and
    Unsupported for a sequence id that is too long.
    """
    read = read_parameters(given)
    plan.binary_default = read.binary_output
    plan.empty_final = read.empty_final
    plan.priority = read.priority
    plan.timeout = read.timeout
    plan.sequence = read.sequence
    plan.parameters = read.others


def class_count(output: str, value: object) -> int:
    """Returns the number of classes requested of an output, limited to MAX_CLASSES.

    Raises InvalidArgument unless the value is a positive int.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WrongType(
            "classification",
            "unsigned-integer",
            f"parameter 'classification' of output '{output}' must be a positive integer, got {shown(value)}",
        )
    return min(value, MAX_CLASSES)


_NO_DATA = np.empty(1, np.uint8)


class PlanBuilder:
    """Collects the inputs and outputs of a request and checks them as far as possible without the model.

    Every method raises InvalidArgument for an invalid request, and Unsupported if clients may not share
    memory. `model` and `id` identify the model and the request in error texts.
    """

    def __init__(self, model: str, id: str, memory: SharedMemory | None) -> None:
        self.inputs: list[InputPlan] = []
        self._id = id
        self._model = model
        self._memory = memory
        self._names: set[str] = set()
        self._outputs: dict[str, None] = {}
        self._slices: dict[str, RegionSlice] = {}

    def input_slice(self, name: str, parameters: Mapping[str, Any]) -> RegionSlice | None:
        """Returns the shared memory that a new input's parameters refer to; None if the parameters name no
        region.
        """
        if name in self._names:
            raise InvalidArgument(f"{prefix(self._id)}input '{name}' already exists in request")
        self._names.add(name)
        return read_slice("input", name, parameters, self._memory) if parameters else None

    def add_input(self, name: str, datatype: str, shape: Shape, slice: RegionSlice | None) -> InputPlan:
        """Adds an input and returns the plan of the input."""
        if slice is None or self._memory is None:
            spec = InputPlan(name, datatype, shape)
        else:
            spec = SharedInput(name, datatype, shape, slice, self._memory, self._model)
        self.inputs.append(spec)
        return spec

    def add_output(
        self, plan: InferPlan, name: str, parameters: Mapping[str, Any], *, binary: bool = False
    ) -> None:
        """Adds a requested output. If `binary` is true, the parameter `binary_data` chooses binary form or
        JSON.
        """
        if name in self._outputs:
            raise InvalidArgument(f"output '{name}' already exists in request")
        self._outputs[name] = None
        if not parameters:
            return
        if binary and "binary_data" in parameters:
            plan.binary[name] = boolean("binary_data", parameters["binary_data"])
        if "classification" in parameters:
            plan.classify(name, class_count(name, parameters["classification"]))
        slice = read_slice("output", name, parameters, self._memory)
        if slice is None:
            return
        for other, there in (
            ("binary_data", plan.binary.get(name)),
            ("classification", name in plan.classes),
        ):
            if there:
                raise InvalidArgument(f"Output can't set both '{REGION}' and '{other}' (output '{name}')")
        plan.binary[name] = False
        self._slices[name] = slice

    def finish(self, plan: InferPlan) -> None:
        """Completes the plan. Raises PayloadTooLarge for too many BYTES elements, or too much shared
        memory.
        """
        if len(self.inputs) > 1:  # an InputPlan has checked its own elements
            check_bytes_elements(sum([spec.count for spec in self.inputs if spec.size < 0]))
        if self._outputs:
            plan.outputs = tuple(self._outputs)
        shared = [spec for spec in self.inputs if isinstance(spec, SharedInput)]
        if self._memory is not None and (shared or self._slices):
            plan.share(SharedTensors(self._memory, shared, self._slices))


def check_description(engine: Engine, model: str, version: str, id: str, plan: InferPlan) -> None:
    """Checks the names, datatypes and shapes of a large request, before the data is decoded.

    Raises NotFound, Unavailable or InvalidArgument, as submitting the request would. Two kinds of requests
    are checked only when submitted: requests to models that are not loaded yet, and requests of sequences,
    which may belong to a version that is draining. May be called on any thread.
    """
    served = engine.find_ready(model, version)
    if plan.sequence is not None or served.on_demand:
        return
    described = {spec.name: Tensor(spec.name, spec.datatype, spec.shape, _NO_DATA) for spec in plan.inputs}
    ticket = unsubmitted(InferRequest(model, described, id=id, outputs=plan.outputs))
    # Only the model's own check knows whether the limit on the batch size is strict.
    RequestCheck(served.name, served.signature, served.max_batch_size, strict=False)(ticket)
