"""The parameters of requests to load and unload a model: the same rules, and the texts of Triton, for REST and gRPC."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

from backline.dialects.open_inference.documents import suggestion
from backline.engine.control import Overrides
from backline.engine.errors import InvalidArgument, PayloadTooLarge

CONFIG = "config"
FILE = "file:"
#: Characters of a configuration: decoding holds the interpreter for about 10 ms at most.
MAX_CONFIG = 256 * 1024
DEPENDENTS = "unload_dependents"
#: Characters of base64 that are decoded at a time, a multiple of 4: between two pieces other threads have their turn.
_PIECE = 1 << 20


def check_config(size: int) -> None:
    """Raises PayloadTooLarge for a configuration of so many characters."""
    if size > MAX_CONFIG:
        raise PayloadTooLarge(
            f"load parameter '{CONFIG}' has {size} characters, more than the {MAX_CONFIG} that a configuration may have"
        )


def overrides_from_json(parameters: Mapping[str, Any]) -> Overrides | None:
    """What a REST request to load brings along: `config` is a string, the contents of files are base64. Raises InvalidArgument."""
    config: str | None = None
    files = {}
    for name, value in parameters.items():
        _check_load_name(name)
        if not isinstance(value, str):
            more = ": the configuration as JSON, in a string" if name == CONFIG else " of base64"
            raise InvalidArgument(f"invalid value type for load parameter '{name}', expected a string{more}")
        if name == CONFIG:
            config = value
        else:
            files[name.removeprefix(FILE)] = _decode(name, value)
    return _overrides(config, files)


def overrides_from_message(parameters: Mapping[str, Any]) -> Overrides | None:
    """What a RepositoryModelLoadRequest brings along. Raises InvalidArgument."""
    config: str | None = None
    files = {}
    for name, value in parameters.items():
        _check_load_name(name)
        kind = "string_param" if name == CONFIG else "bytes_param"
        if value.WhichOneof("parameter_choice") != kind:
            raise InvalidArgument(f"invalid value type for load parameter '{name}', expected {kind}.")
        if name == CONFIG:
            config = value.string_param
        else:
            files[name.removeprefix(FILE)] = value.bytes_param
    return _overrides(config, files)


def dependents_from_json(parameters: Mapping[str, Any]) -> bool:
    """Whether a REST request wants the models that depend on the unloaded one unloaded too. Raises InvalidArgument."""
    for name, value in parameters.items():
        _check_unload_name(name)
        if not isinstance(value, bool):
            raise InvalidArgument(f"invalid value type for '{DEPENDENTS}' parameter, expected true or false")
    return bool(parameters.get(DEPENDENTS, False))


def dependents_from_message(parameters: Mapping[str, Any]) -> bool:
    """Whether a RepositoryModelUnloadRequest wants it. Raises InvalidArgument."""
    for name, value in parameters.items():
        _check_unload_name(name)
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidArgument(f"invalid value type for '{DEPENDENTS}' parameter, expected bool_param.")
    return DEPENDENTS in parameters and bool(parameters[DEPENDENTS].bool_param)


def _check_load_name(name: str) -> None:
    if name != CONFIG and not name.startswith(FILE):
        raise InvalidArgument(
            f"unrecognized load parameter '{name[:64]}'. {suggestion(name, (CONFIG, FILE + '1/model.onnx'))}"
        )


def _check_unload_name(name: str) -> None:
    if name != DEPENDENTS:
        raise InvalidArgument(
            f"unrecognized unload parameter '{name[:64]}'. {suggestion(name, (DEPENDENTS,))}"
        )


def _overrides(config: str | None, files: dict[str, bytes]) -> Overrides | None:
    if files and config is None:
        raise InvalidArgument("Load parameter 'config' must be specified for model file override")
    if config is not None:
        check_config(len(config))
    return None if config is None else Overrides(config, files)


def _decode(name: str, text: str) -> bytes:
    content = bytearray()
    try:
        for start in range(0, len(text), _PIECE):
            content += binascii.a2b_base64(text[start : start + _PIECE], strict_mode=True)
    except ValueError as error:
        raise InvalidArgument(f"the value of load parameter '{name}' is not base64: {error}") from None
    return bytes(content)
