"""PyTorch models: TorchScript, torch.export programs and AOTInductor packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec import structs

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LOOPS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import decode, encode, failed_run, import_runtime, one_line, require_trust
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Gpus
from backline.plugins.runtimes.pytorch import programs
from backline.plugins.runtimes.pytorch.files import PytorchKind, compiled_for, identify
from backline.plugins.runtimes.pytorch.programs import Argument, Program, device_name, moving, usable_gpus
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

_WHAT = "PyTorch models need PyTorch"
_KNOWN = ("INTRA_OP_THREAD_COUNT",)
#: Triton's convention for unnamed inputs and outputs: INPUT__0, OUTPUT__1.
_INDEXED = re.compile(r".+__(\d+)")
_NUMBERS = frozenset({"int", "float", "bool", "number"})


class Pytorch:
    """The backend for `*.pt`, `*.jit` and `*.pt2`."""

    name: ClassVar[str] = "pytorch"

    def check_file(self, path: Path) -> None:
        identify(path)

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs; none for an AOTInductor package compiled for another device. See GpuBackend."""
        if identify(path) is PytorchKind.COMPILED and (kind := compiled_for(path)) != "cuda":
            return Gpus(reason=f"'{path}' was compiled for {kind or 'the CPU'}")
        return usable_gpus(import_runtime("torch", what=_WHAT, extra="torch"))

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> PytorchModel:
        """Loads a file without executing pickles.

        All kinds of files contain code: a script can compute anything, an AOTInductor package is machine
        code, and torch.export evaluates symbolic sizes and guards as Python. So remote files can be loaded
        only if the server trusts remote code, and packages also need `trust_pickle`.

        A run uses one thread unless INTRA_OP_THREAD_COUNT is set, which applies to all PyTorch models of the
        process. Raises InvalidArgument for code that is not trusted, a script with file operations, a
        checkpoint, and a model whose inputs and outputs neither the file nor the configuration describes.
        """
        require_trust(path, config, options)
        torch = import_runtime("torch", what=_WHAT, extra="torch")
        parameters = Parameters(config, self.name, _KNOWN)
        kind = identify(path)
        torch.set_num_threads(parameters.threads("INTRA_OP_THREAD_COUNT", 1))
        place = device_name(options.device)
        if kind is PytorchKind.TORCH_SCRIPT:
            program = programs.load_script(torch, path, place)
        elif kind is PytorchKind.EXPORTED:
            program = programs.load_exported(torch, path, place)
        elif options.trust_pickle:
            program = programs.load_compiled(torch, path, place)
        else:
            raise InvalidArgument(
                f"'{path}' is an AOTInductor package, whose machine code can do anything when it is loaded;"
                f" serve with --trust-pickle-model {config.name} if you know where it comes from, or serve"
                " the torch.export program that it was made from"
            )
        if place is not None and options.device != CPU:
            program = replace(program, call=moving(torch, program.call, place))
        order, file = _name_inputs(path, kind, program, config)
        outputs = _name_outputs(path, kind, program, config)
        full = Signature(file, tuple(spec for spec, _ in outputs))
        signature = agree(path, full, config) if program.inputs is not None else full
        positions = {spec.name: position for spec, position in outputs}
        warnings = parameters.warnings
        if kind is PytorchKind.COMPILED:
            warnings += (f"'{path}' is machine code that is trusted, not checked",)
        return PytorchModel(config.name, torch, program, order, positions, signature, warnings)


class PytorchModel:
    """A loaded program. Outputs are found by key if a run returns a dict with the key, else by position."""

    def __init__(
        self,
        name: str,
        torch: Any,
        program: Program,
        order: Sequence[tuple[str, Argument]],
        positions: Mapping[str, int],
        signature: Signature,
        warnings: tuple[str, ...],
    ) -> None:
        self._name = name
        self._torch = torch
        self._call: Callable[..., Any] | None = program.call
        datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        self._inputs = [(name, self._converter(name, argument, datatypes[name])) for name, argument in order]
        self._positions = positions
        self._datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        self.signature = signature
        self.warnings = warnings
        self.unbounded = LOOPS if program.loops else ""
        self.threads_per_run: int = torch.get_num_threads()

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._call is None:
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
        values = [convert(inputs[name]) for name, convert in self._inputs]
        try:
            with self._torch.inference_mode():
                answer = self._call(*values)
                flat = list(programs.flatten(answer))
                return [self._array(name, answer, flat) for name in outputs]
        except BacklineError:
            raise
        except Exception as error:
            raise self._failure(error) from None

    def close(self) -> None:
        self._call = None

    def _converter(self, name: str, argument: Argument, datatype: DataType) -> Callable[[np.ndarray], Any]:
        torch = self._torch
        if datatype is DataType.BYTES:
            return lambda array: decode(self._name, name, array).reshape(-1).tolist()
        if argument.type in _NUMBERS:
            return lambda array: self._number(name, array)
        if datatype is DataType.BF16:
            return lambda array: torch.from_numpy(_own(array).view(np.int16)).view(torch.bfloat16)
        return lambda array: torch.from_numpy(_own(array))

    def _number(self, name: str, array: np.ndarray) -> Any:
        if array.size != 1:
            raise InvalidArgument(
                f"input '{name}' of model '{self._name}' takes one number, got an array of shape"
                f" {list(array.shape)}"
            )
        return array.reshape(-1)[0].item()

    def _array(self, name: str, answer: Any, flat: list[Any]) -> np.ndarray:
        position = self._positions[name]
        try:
            value = answer[name] if isinstance(answer, dict) and name in answer else flat[position]
        except IndexError:
            raise Internal(
                f"model '{self._name}' returned {len(flat)} outputs, but its configuration names more: remove"
                f" output '{name}' from the configuration, or return it"
            ) from None
        if not isinstance(value, self._torch.Tensor):
            return encode(np.array(value, object)) if isinstance(value, (list, str)) else np.asarray(value)
        value = value.detach().cpu()
        if value.dtype == self._torch.bfloat16:
            array: np.ndarray = value.contiguous().view(self._torch.int16).numpy().view(np.uint16)
        else:
            array = value.contiguous().numpy()
        wanted = self._datatypes[name]
        if array.dtype != wanted.dtype:
            raise Internal(
                f"output '{name}' of model '{self._name}' is {DataType.from_dtype(array.dtype).config_name},"
                f" but its configuration says {wanted.config_name}"
            )
        return array

    def _failure(self, error: Exception) -> BacklineError:
        reason = one_line(_innermost(error))
        # Exported programs check shapes with assertions; PyTorch raises RuntimeError for most other errors.
        refused = isinstance(error, AssertionError) or "Guard failed" in reason or "shape" in reason
        return failed_run(self._name, reason, refused=refused)


def _own(array: np.ndarray) -> np.ndarray:
    """Returns the array, or a copy of a read-only array, because PyTorch has no read-only tensors."""
    return array if array.flags.writeable else array.copy()


def _innermost(error: Exception) -> str:
    """Returns the reason in an error: the end of a TorchScript traceback, or the text without C++ details."""
    text = str(error)
    if "Traceback of TorchScript" in text:
        text = text.strip().splitlines()[-1]
    return re.sub(r"\s*(Exception raised from|C\+\+ CapturedTraceback).*", "", text, flags=re.DOTALL)


def _name_inputs(
    path: Path, kind: PytorchKind, program: Program, config: ModelConfig
) -> tuple[list[tuple[str, Argument]], tuple[TensorSpec, ...]]:
    """Returns the inputs in the order of the program's arguments, and their specifications.

    As in Triton, a configuration may name inputs after the arguments, number them (INPUT__0), or list them in
    order.
    """
    arguments, given = program.arguments, config.inputs
    if not given:
        if program.inputs is None:
            raise InvalidArgument(_says_nothing(path, kind, program, config))
        names = [spec.name for spec in program.inputs]
        return list(zip(names, arguments, strict=True)), program.inputs
    by_name = {argument.name: index for index, argument in enumerate(arguments)}
    if all(spec.name in by_name for spec in given):
        indexes = [by_name[spec.name] for spec in given]
    else:
        indexes = _indexes([spec.name for spec in given])
    required = sum(argument.required for argument in arguments)
    if sorted(indexes) != list(range(len(given))) or not required <= len(given) <= len(arguments):
        taken = ", ".join(f"'{argument.name}'" for argument in arguments)
        raise InvalidArgument(
            f"model '{config.name}': {config.source} names the inputs"
            f" {', '.join(repr(spec.name) for spec in given)}, but '{path}' takes {taken}; use these names or"
            " INPUT__0, INPUT__1 and so on"
        )
    order = sorted(zip(indexes, given, strict=True), key=lambda pair: pair[0])
    for index, spec in order:
        _check_argument(path, arguments[index], spec, config)
    if program.inputs is None:
        specs = tuple(_full(spec, config) for _, spec in order)
    else:
        specs = tuple(structs.replace(program.inputs[index], name=spec.name) for index, spec in order)
    return [(spec.name, arguments[index]) for index, spec in order], specs


def _name_outputs(
    path: Path, kind: PytorchKind, program: Program, config: ModelConfig
) -> list[tuple[TensorSpec, int]]:
    """Returns the outputs, each with its index in the flattened result of the program."""
    given = config.outputs
    if not given:
        if program.outputs is None:
            raise InvalidArgument(_says_nothing(path, kind, program, config))
        return [(spec, index) for index, spec in enumerate(program.outputs)]
    names = [spec.name for spec in given]
    if program.outputs is not None:
        known = {spec.name: index for index, spec in enumerate(program.outputs)}
        indexes = [known[name] for name in names] if all(name in known for name in names) else _indexes(names)
        if max(indexes) >= len(program.outputs):
            raise InvalidArgument(
                f"model '{config.name}': {config.source} names the outputs {', '.join(map(repr, names))}, but"
                f" '{path}' has {', '.join(repr(spec.name) for spec in program.outputs)}"
            )
        return [
            (structs.replace(program.outputs[index], name=name), index)
            for name, index in zip(names, indexes, strict=True)
        ]
    return [(_full(spec, config), index) for spec, index in zip(given, _indexes(names), strict=True)]


def _indexes(names: Sequence[str]) -> list[int]:
    """Returns the indexes in names such as INPUT__0; 0, 1, 2 and so on if any name has no index."""
    matches = [_INDEXED.fullmatch(name) for name in names]
    if all(matches):
        return [int(match[1]) for match in matches if match]
    return list(range(len(names)))


def _full(spec: TensorSpec, config: ModelConfig) -> TensorSpec:
    return structs.replace(spec, shape=(-1, *spec.shape)) if config.max_batch_size else spec


def _check_argument(path: Path, argument: Argument, spec: TensorSpec, config: ModelConfig) -> None:
    text = spec.datatype is DataType.BYTES
    fits = argument.type == "List[str]" if text else argument.type == "Tensor" or argument.type in _NUMBERS
    if not fits:
        raise InvalidArgument(
            f"model '{config.name}': argument '{argument.name}' of '{path}' is a {argument.type}, which"
            f" cannot be created from input '{spec.name}', which is {spec.datatype.config_name} in"
            f" {config.source}"
        )


def _says_nothing(path: Path, kind: PytorchKind, program: Program, config: ModelConfig) -> str:
    example = ", ".join(
        f'{{ name: "{argument.name}" data_type: TYPE_FP32 dims: [ -1, ... ] }}'
        for argument in program.arguments
        if argument.required
    )
    where = config.source or "a config.pbtxt in the model's folder"
    return (
        f"'{path}' is {kind.value}, which does not contain the datatypes and shapes of its inputs and"
        f" outputs; write them into {where}:"
        f' input [ {example} ] output [ {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ -1, ... ] }} ].'
        " A torch.export program (.pt2) contains them"
    )
