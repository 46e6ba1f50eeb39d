"""JAX functions exported as StableHLO (jax.export), compiled for the CPU or a GPU."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backline.backends.agreement import agree
from backline.backends.backend import COMPILES, DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import (
    NeverRuns,
    failed_run,
    import_runtime,
    one_line,
    read_start,
    unservable,
)
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Gpus
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

#: The environment variable that sets the number of XLA's threads (default: one per core). XLA reads the
#: variable only once.
_THREADS = "NPROC"
_WHAT = "JAX models need JAX"
#: The environment variable that, when false, keeps JAX from reserving most of a GPU's memory at first use.
_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
#: A word in the text of XLA's error for a lack of memory. Such an error does not mean that every run fails,
#: because smaller inputs need less memory.
_NO_MEMORY = "RESOURCE_EXHAUSTED"
#: The platforms of functions that run on GPUs.
_GPU_PLATFORMS = frozenset({"cuda", "rocm"})
#: Custom calls that jump to an address given by the file (jax.pure_callback). jax.export refuses to write
#: such calls, but an attacker could craft a file with one. The names of such calls are plain text in the
#: bytecode.
_CALLBACK = re.compile(rb"xla_(?:ffi_)?(?:partitioned_)?python_\w*callback")


class Jax:
    """The backend for `*.jax` files, the output of `jax.export.export(...)(...).serialize()`."""

    name: ClassVar[str] = "jax"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs that JAX can use, if the function was exported for GPUs. See GpuBackend."""
        jax = _import()
        exported = _read(jax, path)
        if not _GPU_PLATFORMS.intersection(exported.platforms):
            return Gpus(
                reason=f"'{path}' was exported for {', '.join(exported.platforms)}:"
                " export it with platforms=['cpu', 'cuda']"
            )
        try:
            return Gpus(tuple(range(len(jax.devices("gpu")))))
        except RuntimeError as error:
            return Gpus(
                reason=f"JAX {jax.__version__} cannot use a GPU ({one_line(error)}):"
                " pip install 'jax[cuda12]'"
            )

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> JaxModel:
        """Loads an exported function.

        Keyword arguments and dict entries keep their names; other inputs and outputs are named INPUT__0,
        OUTPUT__0 and so on. For each size of a symbolic dimension, the function is compiled when that size is
        first used. A run uses one core unless the environment variable NPROC is set.
        """
        parameters = Parameters(config, self.name, ())
        jax = _import()
        exported = _read(jax, path)
        if options.device == CPU and "cpu" not in exported.platforms:
            raise InvalidArgument(
                f"'{path}' was exported for {', '.join(exported.platforms)}; export it with platforms=['cpu']"
                " as well"
            )
        inputs = _names(jax.tree_util, exported.in_tree, "INPUT")
        outputs = _names(jax.tree_util, exported.out_tree, "OUTPUT")
        file = Signature(
            tuple(_spec(path, "input", *pair) for pair in zip(inputs, exported.in_avals, strict=True)),
            tuple(_spec(path, "output", *pair) for pair in zip(outputs, exported.out_avals, strict=True)),
        )
        return JaxModel(
            config.name,
            jax,
            exported,
            file,
            agree(path, file, config),
            _place(jax, options.device),
            parameters.warnings,
        )


def _import() -> Any:
    os.environ.setdefault(_THREADS, "1")
    os.environ.setdefault(_PREALLOCATE, "false")
    jax = import_runtime("jax", what=_WHAT, extra="jax")
    jax.devices("cpu")
    return jax


def _read(jax: Any, path: Path) -> Any:
    read_start(path)
    export = import_runtime("jax.export", what=_WHAT, extra="jax")
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
        module = exported.mlir_module_serialized
        _parse(module)
    except Exception as error:
        raise InvalidArgument(
            f"'{path}' cannot be loaded by JAX {jax.__version__}: {one_line(error) or type(error).__name__};"
            " expected the result of jax.export.export(function)(*arguments).serialize()"
        ) from None
    if found := _CALLBACK.search(module):
        raise InvalidArgument(
            f"'{path}' is refused: it calls '{found[0].decode()}', a callback at a memory address that was"
            " valid only in the process that exported the file; export the function without callbacks"
        )
    return exported


def _parse(program: bytes) -> None:
    """Raises an error if a StableHLO program is damaged, which JAX would otherwise detect only at the first
    run.
    """
    parse = getattr(import_module("jax.extend.mlir"), "deserialize_portable_artifact", None)
    if parse is None:  # older versions of JAX lack this function
        return
    with import_module("jax.interpreters.mlir").make_ir_context() as context:
        context.attach_diagnostic_handler(lambda _: True)  # keeps MLIR from printing the reason
        parse(program)


def _place(jax: Any, device: Device) -> Any:
    """Returns the JAX device to move inputs to; None for JAX's default device, where inputs already are."""
    if device.kind == "model":
        return None
    found = jax.devices(device.kind)[device.index]
    return None if found == jax.devices()[0] else found


class JaxModel:
    """An exported function, which is compiled for each combination of input shapes."""

    threads_per_run = 1
    #: See UnboundedModel. Because all functions are compiled, this also covers functions with loops.
    unbounded = COMPILES

    def __init__(
        self,
        name: str,
        jax: Any,
        exported: Any,
        file: Signature,
        signature: Signature,
        place: Any,
        warnings: tuple[str, ...],
    ) -> None:
        self._name = name
        self._place = place
        self._jax = jax
        self._call = jax.jit(exported.call)
        self._in_tree = exported.in_tree
        self._inputs = [(spec.name, spec.datatype is DataType.BF16) for spec in file.inputs]
        self._positions = {spec.name: index for index, spec in enumerate(file.outputs)}
        self.signature = signature
        self.warnings = warnings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._call is None:
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
        tree = self._jax.tree_util
        flat = [
            inputs[name].view(self._jax.numpy.bfloat16) if half else inputs[name]
            for name, half in self._inputs
        ]
        if self._place is not None:
            flat = self._jax.device_put(flat, self._place)
        arguments, keywords = tree.tree_unflatten(self._in_tree, flat)
        try:
            answers = tree.tree_leaves(self._call(*arguments, **keywords))
            arrays = [np.asarray(answers[self._positions[name]]) for name in outputs]
        except Exception as error:
            # JAX raises these errors before it compiles the program, if shapes do not match the export.
            refused = isinstance(error, (ValueError, TypeError))
            failure = failed_run(self._name, one_line(error), refused=refused)
            if refused or isinstance(error, MemoryError) or _NO_MEMORY in failure.message:
                raise failure from None
            raise NeverRuns(failure.message) from None  # other errors of XLA mean a faulty program
        return [array.view(np.uint16) if array.dtype.name == "bfloat16" else array for array in arrays]

    def close(self) -> None:
        self._call = None


def _names(tree: Any, structure: Any, prefix: str) -> list[str]:
    """Returns a name for each tensor of a tree of inputs or outputs: the keys on the path to the tensor,
    joined by dots, or else `prefix` and an index, such as INPUT__0. If two of these names are equal, all
    tensors are named by index.
    """
    leaves = tree.tree_flatten_with_path(tree.tree_unflatten(structure, list(range(structure.num_leaves))))[0]
    names = []
    for index, (path, _) in enumerate(leaves):
        keys = [str(key.key) for key in path if isinstance(getattr(key, "key", None), str)]
        names.append(".".join(keys) or f"{prefix}__{index}")
    return names if len(set(names)) == len(names) else [f"{prefix}__{index}" for index in range(len(names))]


def _spec(path: Path, kind: str, name: str, aval: Any) -> TensorSpec:
    if aval.dtype.name == "bfloat16":
        datatype = DataType.BF16
    else:
        try:
            datatype = DataType.from_dtype(np.dtype(aval.dtype))
        except (InvalidArgument, TypeError):
            raise unservable(path, kind, name, f"of type {aval.dtype}") from None
    return TensorSpec(name, datatype, tuple(dim if isinstance(dim, int) else -1 for dim in aval.shape))
