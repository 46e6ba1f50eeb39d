"""Checks ensemble_scheduling. Most error messages have Triton's wording (core/src/ensemble_utils.cc)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Fault = tuple[str, str]


def ensemble_faults(message: Any, name: str) -> Iterator[Fault]:
    """Yields each fault in the ensemble_scheduling of an inference.ModelConfig, with the path of the
    field.
    """
    section = "ensemble_scheduling"
    platform = message.platform or message.backend
    if platform != "ensemble":
        yield (
            f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble",
            "platform" if platform else section,
        )
    if not message.ensemble_scheduling.step:
        yield f"must specify 'step' for ensemble '{name}'", section
    inputs = {tensor.name for tensor in message.input}
    produced: dict[str, int] = {}
    used: set[str] = set()
    for index, step in enumerate(message.ensemble_scheduling.step):
        path = f"{section}.step[{index}]"
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                yield f"must specify '{field}' in step {index} of ensemble '{name}'", path
        if step.model_version < -1 or step.model_version == 0:
            reason = (
                f"model_version of step {index} of ensemble '{name}' is {step.model_version}; it must be -1"
                " or a version"
            )
            yield reason, path
        if step.model_namespace:
            reason = (
                f"model_namespace of step {index} of ensemble '{name}' is not supported; remove it, and use"
                " the name under which the model is served"
            )
            yield reason, f"{path}.model_namespace"
        for tensor in step.output_map.values():
            if tensor in produced:
                reason = (
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble"
                    f" '{name}' step {index}"
                )
                yield reason, path
            if tensor in inputs:
                reason = (
                    f"ensemble tensor '{tensor}' is an input of ensemble '{name}', which step {index} must"
                    " not write"
                )
                yield reason, path
            produced[tensor] = index
        used |= set(step.input_map.values())
    yield from _unused(message, name, produced, used)
    yield from _never_there(message, name, produced, inputs)


def _unused(message: Any, name: str, produced: dict[str, int], used: set[str]) -> Iterator[Fault]:
    for index, tensor in enumerate(message.input):
        if tensor.name not in used:
            yield f"ensemble input '{tensor.name}' for ensemble '{name}' is not used", f"input[{index}]"
    for index, tensor in enumerate(message.output):
        if tensor.name not in produced:
            yield f"ensemble output '{tensor.name}' for ensemble '{name}' is not used", f"output[{index}]"
    outputs = {tensor.name for tensor in message.output}
    for tensor, index in produced.items():
        if tensor not in used and tensor not in outputs:
            yield (
                f"ensemble tensor '{tensor}' is unused in ensemble '{name}'",
                f"ensemble_scheduling.step[{index}]",
            )


def _never_there(message: Any, name: str, produced: dict[str, int], inputs: set[str]) -> Iterator[Fault]:
    """Yields a fault for each tensor that a step needs but nothing produces, and one fault for the steps that
    therefore, or because they form a cycle, can never run.
    """
    there = set(inputs)
    waiting = dict(enumerate(message.ensemble_scheduling.step))
    while ready := [index for index, step in waiting.items() if there.issuperset(step.input_map.values())]:
        for index in ready:
            there |= set(waiting.pop(index).output_map.values())
    for index, step in waiting.items():
        path = f"ensemble_scheduling.step[{index}]"
        for tensor in step.input_map.values():
            if tensor not in there and tensor not in produced:
                reason = (
                    f"step {index} of ensemble '{name}' needs tensor '{tensor}', which is neither an input"
                    " nor a step's output"
                )
                yield reason, path
    if waiting:
        numbers = ", ".join(map(str, waiting))
        yield (
            f"the steps {numbers} of ensemble '{name}' wait for each other's tensors",
            f"ensemble_scheduling.step[{min(waiting)}]",
        )
