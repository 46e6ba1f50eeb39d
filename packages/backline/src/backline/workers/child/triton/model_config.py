"""The configuration that a model completes in `auto_complete_config`. Error texts are Triton's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

_Kind = Literal["input", "output"]
_UNKNOWN = "TYPE_INVALID"


class ModelConfig:
    """A model's configuration: a dict with the fields of inference.ModelConfig."""

    def __init__(self, model_config: str) -> None:
        """Reads the configuration, which is given as JSON."""
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields. Change them only with the methods of this class."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Sets max_batch_size. Raises ValueError if the configuration has a larger one."""
        config = self._model_config
        if config["max_batch_size"] > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {config['max_batch_size']}, but in"
                " auto-complete-config function for model"
                f" '{config['name']}' specified max_batch_size {max_batch_size}"
            )
        config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Enables dynamic batching. Raises ValueError if the configuration has another scheduler."""
        config = self._model_config
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but auto-complete-config"
                    " function for model"
                    f" '{config['name']}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        config.setdefault("dynamic_batching", {})

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Adds an input with `name`, `data_type`, `dims` and optionally `optional`, or completes the input of
        that name.

        Raises ValueError for unknown or missing properties, and for properties that contradict the
        configuration.
        """
        self._add(
            "input",
            input,
            ("name", "data_type", "dims", "optional"),
            "'name', 'data_type', 'dims' and 'optional'",
        )

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Adds an output with `name`, `data_type` and `dims`, or completes the output of that name. Raises
        ValueError as `add_input` does.
        """
        self._add("output", output, ("name", "data_type", "dims"), "'name', 'data_type' and 'dims'")

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Sets `decoupled`. Raises ValueError for other properties, or if the configuration has a different
        value.
        """
        config = self._model_config
        if any(name != "decoupled" for name in transaction_policy_dict):
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{config['name']}'"
                " contains property other than"
                " 'decoupled'."
            )
        policy = config.setdefault("model_transaction_policy", {})
        if "decoupled" not in transaction_policy_dict:
            return
        if "decoupled" in policy and policy["decoupled"] != transaction_policy_dict["decoupled"]:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{config['name']}',"
                " which is already set to"
                f" '{policy['decoupled']}'."
            )
        policy["decoupled"] = transaction_policy_dict["decoupled"]

    def _add(self, kind: _Kind, given: Mapping[str, Any], properties: tuple[str, ...], listed: str) -> None:
        tensors: list[dict[str, Any]] = self._model_config[kind]
        self._check_properties(kind, given, properties, listed)
        there = next((tensor for tensor in tensors if tensor["name"] == given["name"]), None)
        if there is None:
            tensors.append(dict(given))
            return
        self._check_agreement(kind, there, given)
        there.update(given)

    def _check_properties(
        self, kind: _Kind, given: Mapping[str, Any], properties: tuple[str, ...], listed: str
    ) -> None:
        where = f"in auto-complete-config function for model '{self._model_config['name']}'"
        if any(name not in properties for name in given):
            raise ValueError(f"{kind} '{given['name']}' {where} contains property other than {listed}.")
        if "name" not in given:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        for name in ("data_type", "dims"):
            if name not in given:
                raise ValueError(f"{kind} '{given['name']}' {where} is missing '{name}' property.")

    def _check_agreement(self, kind: _Kind, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        model, name = self._model_config["name"], given["name"]
        if there["data_type"] not in (_UNKNOWN, given["data_type"]):
            raise ValueError(
                f"unable to load model '{model}', configuration expects datatype {there['data_type']} for"
                f" {kind} '{name}',"
                f" model provides {given['data_type']}"
            )
        for field in ("dims", "optional"):
            expected = there.get(field)
            if field not in given or field not in there or (field == "dims" and not expected):
                continue
            if expected != given[field]:
                raise ValueError(
                    f"model '{model}', tensor '{name}': the model expects {field} {given[field]} but the"
                    " model configuration specifies"
                    f" {field} {expected}"
                )


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """Returns the section of an input in a configuration, or None if the input is missing."""
    return _named(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """Returns the section of an output in a configuration, or None if the output is missing."""
    return _named(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Returns whether a configuration declares the model decoupled."""
    policy = model_config.get("model_transaction_policy")
    return bool(policy["decoupled"]) if policy is not None else False


def _named(sections: Iterable[Any], name: str) -> Any:
    return next((section for section in sections if section["name"] == name), None)
