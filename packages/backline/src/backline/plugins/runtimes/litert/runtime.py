"""LiteRT models (`*.tflite`) on the CPU, with batches of any size if the model accepts them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from msgspec.structs import replace

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LOOPS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import failed_run, import_runtime, loading, one_line, read_start, unservable
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

#: The file identifier of the FlatBuffer, at bytes 4 to 7 (schema.fbs).
_IDENTIFIER = b"TFL3"
_KNOWN = ("num_threads", "signature")
_DEFAULT_SIGNATURE = "serving_default"
#: Fields of the tables Model and OperatorCode, and the codes of WHILE and STABLEHLO_WHILE (schema.fbs).
_OPERATOR_CODES: Final = 1
_OLD_CODE: Final = 0
_CODE: Final = 3
_WHILE: Final = frozenset({119, 200})


class LiteRt:
    """The backend for `*.tflite`."""

    name: ClassVar[str] = "litert"

    def check_file(self, path: Path) -> None:
        if read_start(path)[4:8] != _IDENTIFIER:
            raise InvalidArgument(
                f"'{path}' is not a LiteRT model: it lacks the file identifier '{_IDENTIFIER.decode()}';"
                " convert the model to LiteRT, or copy the file again"
            )

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> LiteRtModel:
        """Loads a model. Inputs and outputs have the names in its signature or, without one, the names of its
        tensors.

        The parameter `signature` selects one of several signatures. A run uses one thread unless the
        parameter `num_threads` is set.
        """
        runtime = import_runtime(
            "ai_edge_litert.interpreter", what="LiteRT models need LiteRT", extra="litert"
        )
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("num_threads", 1)
        self.check_file(path)

        # Given the path, LiteRT would map the file. If another program then overwrote the file, the weights
        # of the served model would change, and if the file became shorter, the kernel would kill the server
        # with SIGBUS. Interpreters that are created later would even load another file of that name.
        content = path.read_bytes()

        def interpreter() -> Any:
            return runtime.Interpreter(model_content=content, num_threads=threads)

        with loading(path, "LiteRT"):
            keys = list(interpreter().get_signature_list())
            key = _choose_signature(path, keys, parameters.text("signature"))
            first = _Program(interpreter(), key)
            file = Signature(_specs(path, "input", first.inputs()), _specs(path, "output", first.outputs()))
        file = _with_batch(first, file)
        first = _Program(interpreter(), key)  # a failed resize may have broken the old interpreter
        signature = agree(path, file, config)
        return LiteRtModel(
            config.name,
            lambda: _Program(interpreter(), key),
            first,
            signature,
            threads,
            parameters.warnings,
            LOOPS if _has_loop(content) else "",
        )


class _Program:
    """An interpreter that runs the signature `key`, one batch at a time. If `key` is None, it runs the main
    graph.
    """

    def __init__(self, interpreter: Any, key: str | None) -> None:
        self._interpreter = interpreter
        self._runner = interpreter.get_signature_runner(key) if key is not None else None
        self._indexes = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}

    def inputs(self) -> list[tuple[str, dict[str, Any]]]:
        if self._runner:
            return list(self._runner.get_input_details().items())
        return _by_name(self._interpreter.get_input_details())

    def outputs(self) -> list[tuple[str, dict[str, Any]]]:
        if self._runner:
            return list(self._runner.get_output_details().items())
        return _by_name(self._interpreter.get_output_details())

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._runner:
            answers = self._runner(**inputs)
            return [answers[name] for name in outputs]
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self._shapes:
            self._shapes = {}  # because the sizes are unknown if the resize fails
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self._indexes[name], shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._indexes[name], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[name]) for name in outputs]


class LiteRtModel:
    """A model with a pool of idle programs, because an interpreter runs only one batch at a time."""

    def __init__(
        self,
        name: str,
        create: Callable[[], _Program],
        first: _Program,
        signature: Signature,
        threads: int,
        warnings: tuple[str, ...],
        unbounded: str,
    ) -> None:
        self._name = name
        self._create: Callable[[], _Program] | None = create
        self._idle = [first]
        self.signature = signature
        self.threads_per_run = threads
        self.warnings = warnings
        #: See UnboundedModel.
        self.unbounded = unbounded

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._create is None:
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
        try:
            program = self._idle.pop()
        except IndexError:
            program = self._create()
        try:
            answers = program.run(inputs, outputs)
        except Exception as error:  # the interpreter is dropped: a failed resize may have broken it
            reason = one_line(error)
            refused = isinstance(error, ValueError) or "failed to prepare" in reason
            raise failed_run(self._name, reason, refused=refused) from None
        self._idle.append(program)
        return answers

    def close(self) -> None:
        self._create = None
        self._idle = []


def _has_loop(content: bytes) -> bool:
    """Returns whether any graph of a model may have a loop: whether the model has any kind of WHILE operator,
    or is too damaged to tell.

    `content` is a FlatBuffer, of which only the table of operator kinds is read.
    """
    try:
        return not _WHILE.isdisjoint(_operators(content))
    except (struct.error, ValueError):
        return True  # the table is damaged, so nothing is known


def _operators(content: bytes) -> Iterator[int]:
    """Yields the code of each kind of operator. Raises struct.error or ValueError if the file is damaged."""

    def read(form: str, at: int) -> int:
        if at < 0:
            raise ValueError("an offset points outside the file")
        return int(struct.unpack_from(form, content, at)[0])

    def follow(at: int) -> int:
        return at + read("<I", at)

    def field(table: int, number: int) -> int | None:
        """Returns the position of a field of a table; None if the table does not have the field."""
        layout = table - read("<i", table)
        entry = 4 + 2 * number
        offset = read("<H", layout + entry) if entry < read("<H", layout) else 0
        return table + offset if offset else None

    listed = field(follow(0), _OPERATOR_CODES)
    if listed is None:
        return
    vector = follow(listed)
    for index in range(read("<I", vector)):
        kind = follow(vector + 4 + 4 * index)
        old, code = field(kind, _OLD_CODE), field(kind, _CODE)
        # Codes above 127 do not fit into the old field.
        yield max(0 if old is None else read("<b", old), 0 if code is None else read("<i", code))


def _by_name(details: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(detail["name"], detail) for detail in details]


def _choose_signature(path: Path, keys: Sequence[str], wanted: str) -> str | None:
    """Returns the key of the signature to serve; None if the file has no signature."""
    if wanted and wanted not in keys:
        held = ", ".join(f"'{key}'" for key in keys) or "none"
        raise InvalidArgument(
            f"'{path}' has no signature '{wanted}'; it has {held}: correct the parameter 'signature'"
        )
    if wanted or not keys:
        return wanted or None
    if len(keys) == 1:
        return keys[0]
    if _DEFAULT_SIGNATURE in keys:
        return _DEFAULT_SIGNATURE
    raise InvalidArgument(
        f"'{path}' has several signatures, and none is '{_DEFAULT_SIGNATURE}': set the parameter 'signature'"
        " to one of " + ", ".join(f"'{key}'" for key in keys)
    )


def _specs(path: Path, kind: str, details: Sequence[tuple[str, dict[str, Any]]]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, detail in details:
        try:
            datatype = DataType.from_dtype(np.dtype(detail["dtype"]))
        except InvalidArgument:
            raise unservable(path, kind, name, f"of type {detail['dtype']}") from None
        shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
        specs.append(TensorSpec(name, datatype, tuple(int(dim) for dim in shape)))
    return tuple(specs)


def _with_batch(program: _Program, file: Signature) -> Signature:
    """Makes a first dimension of size 1 variable if the model also accepts other sizes.

    Converters fix the batch dimension to 1 by default. A trial run shows only that the number of items may
    vary, and not that items are independent of each other.
    """
    if not all(spec.shape[:1] == (1,) and -1 not in spec.shape for spec in file.inputs):
        return file
    names = [spec.name for spec in file.outputs]
    try:
        for rows in (2, 1):
            zeros = {
                spec.name: np.zeros((rows, *spec.shape[1:]), spec.datatype.dtype) for spec in file.inputs
            }
            if any(array.shape[:1] != (rows,) for array in program.run(zeros, names)):
                return file
    except Exception:  # any error means that the model does not accept two rows
        return file
    return Signature(
        tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in file.inputs),
        tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in file.outputs),
    )
